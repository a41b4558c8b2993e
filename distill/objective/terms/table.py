"""The table of loss terms, which the objective sums; CONTRIBUTING.md tells how to add one."""

from echostill.distill.objective.terms import attention, pooled, reconstruction, relation, tokens
from echostill.distill.objective.terms.attention import AttentionSettings
from echostill.distill.objective.terms.pooled import PooledSettings
from echostill.distill.objective.terms.reconstruction import ReconstructionKeys
from echostill.distill.objective.terms.relation import RelationSettings
from echostill.distill.objective.terms.term import Term
from echostill.distill.objective.terms.tokens import TokenSettings

# In this order losses are summed, and adapters drawn from the seed: a new term goes to the end.
TERMS: tuple[Term, ...] = (
    reconstruction.TERM,
    tokens.TERM,
    attention.TERM,
    relation.TERM,
    pooled.TERM,
)


# A class lists the keys of its last base first.
class TermSettings(
    PooledSettings,
    RelationSettings,
    AttentionSettings,
    TokenSettings,
    ReconstructionKeys,
):
    """The keys of all terms."""
