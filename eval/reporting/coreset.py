"""The report's sections on the pool, its clusters, the ranks and what was chosen."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import spearmanr

from echostill.eval.reporting import figures as draw
from echostill.eval.reporting.copies import copies
from echostill.eval.reporting.data import Material, counts, thumbnails
from echostill.eval.reporting.gallery import (
    Clusters,
    Gallery,
    Rows,
    clusters_of,
    evenly,
    galleries,
    nearest_members,
)
from echostill.eval.reporting.page import (
    Content,
    Html,
    Section,
    details,
    figure,
    grid,
    heading,
    join,
    paragraph,
    signed,
    table,
    text,
    thumbnail,
)
from echostill.eval.reporting.page import thumbnails as thumbnail_row
from echostill.eval.reporting.pool import (
    CATEGORIES,
    accounts,
    contributors,
    file_name,
    pool_figures,
    quality_flags,
    quarantined,
)

CLUSTER_BARS = 80
CORRELATED = 20_000  # images that a rank correlation is computed over, at most


@dataclass(frozen=True)
class GallerySizes:
    """How many pictures the report shows."""

    gallery: int
    clusters: int
    per_cluster: int
    per_organ: int
    side: int


class CoresetSections:
    """Sections 1 to 4, with the pictures that they share."""

    def __init__(self, material: Material, sizes: GallerySizes) -> None:
        self.material, self.sizes = material, sizes
        self.rows = Rows.of(material.coreset)

    @cached_property
    def clusters(self) -> Clusters:
        """The clusters, largest first."""
        return clusters_of(self.rows)

    @cached_property
    def galleries(self) -> list[Gallery]:
        """Galleries of chosen and rejected images."""
        return galleries(self.rows, self.sizes.gallery)

    @cached_property
    def organs(self) -> list[tuple[str, int]]:
        """Organs of the pool with their counts."""
        return counts(self.material.images["organ"])

    @cached_property
    def nearest(self) -> dict[int, np.ndarray]:
        """The nearest members of the largest clusters."""
        largest = self.clusters.number[: self.sizes.clusters]
        return {int(c): nearest_members(self.rows, c, self.sizes.per_cluster) for c in largest}

    @cached_property
    def samples(self) -> dict[str, np.ndarray]:
        """Evenly spaced images of each organ."""
        return {
            organ: evenly(np.flatnonzero(self.material.organ == organ), self.sizes.per_organ)
            for organ, _ in self.organs[:CATEGORIES]
        }

    @cached_property
    def pictures(self) -> dict[str, str]:
        """Thumbnails of all images that are shown, as data URIs."""
        shown = [gallery.positions for gallery in self.galleries]
        shown += [*self.nearest.values(), *self.samples.values()]
        positions = np.unique(np.concatenate(shown)) if shown else np.array([], dtype=int)
        ids = self.rows.image_id[positions].tolist()
        return thumbnails(self.material.pool, ids, self.sizes.side)

    def all(self) -> list[Section]:
        """Return the sections in order."""
        return [self.pool(), self.clustering(), self.ranking(), self.chosen()]

    def pool(self) -> Section:
        """What the pool holds."""
        content = [
            *accounts(self.material),
            *contributors(self.material),
            grid(pool_figures(self.material)),
            heading("A look at each organ"),
            paragraph("Evenly spaced images. A check mark means selected into the coreset."),
        ]
        for organ, positions in self.samples.items():
            count = dict(self.organs)[organ]
            content.append(paragraph(f"{organ}, {count:,} images", "lead"))
            content.append(self._row(positions))
        content += quality_flags(self.material)
        content += quarantined(self.material)
        content += copies(self.material.copies, int(self.rows.selected.sum()))
        return Section("pool", "What the pool holds", join(content))

    def clustering(self) -> Section:
        """Clusters, their quotas, and what selection does to the organs."""
        clusters, rows = self.clusters, self.rows
        total, chosen = len(rows.image_id), int(rows.selected.sum())
        shown = min(len(clusters.number), CLUSTER_BARS)
        rest = len(clusters.number) - shown
        off = int((clusters.selected != clusters.quota).sum())
        agreement = (
            "Every cluster contributed exactly its quota."
            if not off
            else f"{off} of {len(clusters.number)} clusters contributed more or less than their "
            "quota, because the limit per group moved quota between clusters."
        )
        bars = figure(
            draw.cluster_bars(
                clusters.size[:shown], clusters.quota[:shown], clusters.selected[:shown]
            ),
            "clusters",
            f"Members of the {shown} largest clusters (light), how many were selected (accent), "
            f"and the quota (line). {agreement}"
            + (f" {rest} smaller clusters are not drawn." if rest else ""),
            wide=True,
        )
        content = [
            paragraph(
                f"{total:,} scored images fall into {len(clusters.number):,} clusters of "
                f"{clusters.size.min():,} to {clusters.size.max():,} images; {chosen:,} are "
                f"selected, {chosen / total:.1%}."
            ),
            bars,
            self._organ_shares(),
            heading("Nearest to the centroids"),
            paragraph(
                "The members nearest to the centroid of the largest clusters: what a cluster is "
                "about. A check mark means selected."
            ),
        ]
        for cluster, positions in self.nearest.items():
            content.append(paragraph(self._cluster_line(cluster), "lead"))
            content.append(self._row(positions))
        content.append(details("All clusters as a table", self._cluster_table()))
        return Section("clusters", "Clusters and quotas", join(content))

    def ranking(self) -> Section:
        """Both ranks against each other, and the gradient over checkpoints."""
        rows = self.rows
        settings = self.material.configurations.get("select", {})
        method = settings.get("method", "dual-rank")
        if settings.get("fusion", "sum") != "sum":
            method += f", fusion {settings['fusion']}"
        boundary = self._boundary(float(settings.get("alpha", 0.5)), method)
        agreement = _rank_correlation(rows.distance_place, rows.gradient_place)
        explained = (
            "The dashed line is the median boundary of the clusters, the band holds 90% of them."
            if boundary
            else f"The method was '{method}', which has no boundary in these ranks."
        )
        sampled = "" if len(rows.size) <= draw.POINTS else " An even sample of the images is drawn."
        drawn = [
            figure(
                draw.ranks(rows.distance_place, rows.gradient_place, rows.selected, boundary),
                "ranks",
                "Each image by both ranks, divided by the size of its cluster: lower left is near "
                f"the centroid with a large gradient. {explained}{sampled}",
            )
        ]
        gradient = self.material.gradient
        summary = ""
        if gradient.shape[1] > 1:
            spread = np.nanmedian(gradient.std(axis=1) / np.maximum(gradient.mean(axis=1), 1e-12))
            first_last = _rank_correlation(gradient[:, 0], gradient[:, -1])
            summary = (
                f" From the first checkpoint to the last the order of the gradients agrees with "
                f"rank correlation {signed(first_last, 2)}; the median image's norm varies by "
                f"{spread:.0%} of its mean."
            )
            drawn.append(
                figure(
                    draw.checkpoints(gradient, rows.selected),
                    "checkpoints",
                    "Gradient norms at each checkpoint of the proxy: how they spread over the "
                    "pool, and the medians of selected and other images.",
                )
            )
        meaning = "they measure different things"
        if abs(agreement) >= 0.3:
            meaning = "they overlap" if agreement > 0 else "they oppose each other"
        content = [
            paragraph(
                "An image is wanted when it is typical of its cluster (distance rank) and the "
                "proxy still learns from it (gradient rank). The rank correlation of the two is "
                f"{signed(agreement, 2)}: {meaning}.{summary}"
            ),
            grid(drawn),
        ]
        return Section("ranks", "Both ranks against each other", join(content))

    def chosen(self) -> Section:
        """Chosen and rejected images with their reasons."""
        reasons = self.material.coreset["reason"]
        content = [
            paragraph(
                Html(
                    "Every image of the pool has its reason in the coreset table; "
                    "<code>echostill why IMAGE</code> answers for one."
                )
            )
        ]
        for gallery in self.galleries:
            content += [heading(gallery.title), paragraph(gallery.explanation)]
            items = []
            for position in gallery.positions:
                reason = reasons[int(position)].as_py()
                source = file_name(str(self.material.source[position]))
                items.append(self._thumbnail(position, [self._organ(position), reason, source]))
            content.append(thumbnail_row(items, large=True))
        return Section("gallery", "Chosen and rejected", join(content))

    def _organ_shares(self) -> Html:
        organ, selected = self.material.organ, self.rows.selected
        names = [name for name, _ in self.organs[:CATEGORIES]]
        before = np.array([100 * float((organ == name).mean()) for name in names])
        after = np.array([100 * float((organ[selected] == name).mean()) for name in names])
        lines = [
            (name, f"{b:.1f}%", f"{a:.1f}%", signed(a - b, 1))
            for name, b, a in zip(names, before, after, strict=True)
        ]
        drawn = figure(
            draw.shares(names, before, after),
            "shares",
            "Share of each organ in the scored pool (ring) and in the coreset (dot).",
        )
        headings = ["Organ", "Pool", "Coreset", "Points"]
        return grid([drawn, table(headings, lines, "The same shares, and the change in points.")])

    def _cluster_line(self, cluster: int) -> Html:
        where = int(np.flatnonzero(self.clusters.number == cluster)[0])
        size, quota = self.clusters.size[where], self.clusters.quota[where]
        summary = f"{size:,} images, quota {quota:,}, selected {self.clusters.selected[where]:,}"
        return Html(f"<strong>Cluster {cluster}</strong>: {summary}; {text(self._mix(cluster))}")

    def _mix(self, cluster: int) -> str:
        organs = Counter(self.material.organ[self.rows.cluster == cluster].tolist())
        total = sum(organs.values())
        return ", ".join(f"{name} {count / total:.0%}" for name, count in organs.most_common(3))

    def _cluster_table(self) -> Html:
        clusters = self.clusters
        mixes: dict[int, Counter[str]] = defaultdict(Counter)
        shown = clusters.number[:CLUSTER_BARS]
        within = np.isin(self.rows.cluster, shown)
        pairs = zip(self.rows.cluster[within], self.material.organ[within], strict=True)
        for cluster, organ in pairs:
            mixes[int(cluster)][organ] += 1
        lines: list[Sequence[Content]] = []
        for place, number in enumerate(shown):
            mix = mixes[int(number)]
            top = ", ".join(f"{n} {c / mix.total():.0%}" for n, c in mix.most_common(3))
            size, quota = int(clusters.size[place]), int(clusters.quota[place])
            lines.append((f"{number}", size, quota, int(clusters.selected[place]), top))
        rest = len(clusters.number) - len(shown)
        caption = "Clusters, largest first." + (
            f" {rest} smaller ones are left out." if rest else ""
        )
        headings = ["Cluster", "Members", "Quota", "Selected", "Organs"]
        return table(headings, lines, caption, words=frozenset({0, 4}))

    def _boundary(self, alpha: float, method: str) -> draw.Boundary | None:
        """Dual ranks of the last image that each cluster gave, over the clusters."""
        if method != "dual-rank" or not self.rows.selected.any():
            return None
        rows = self.rows
        partly = rows.selected & np.isin(
            rows.cluster, self.clusters.number[self.clusters.selected < self.clusters.size]
        )
        last: dict[int, float] = {}
        for cluster, value in zip(rows.cluster[partly], rows.dual_rank[partly], strict=True):
            last[int(cluster)] = max(last.get(int(cluster), 0.0), float(value))
        if not last:
            return None
        low, median, high = np.quantile(list(last.values()), [0.05, 0.5, 0.95])
        return draw.Boundary(alpha, float(low), float(median), float(high))

    def _row(self, positions: np.ndarray) -> Html:
        return thumbnail_row([self._thumbnail(position) for position in positions])

    def _thumbnail(self, position: int, lines: Sequence[str] = ()) -> Html:
        selected = bool(self.rows.selected[position])
        state = "selected" if selected else "not selected"
        alternative = f"{self._organ(position)}, cluster {self.rows.cluster[position]}, {state}"
        uri = self.pictures.get(self.rows.image_id[position])
        return thumbnail(uri, alternative, lines, selected=selected)

    def _organ(self, position: int) -> str:
        return str(self.material.organ[position])


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    step = max(1, -(-len(first) // CORRELATED))
    first, second = first[::step], second[::step]
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)
