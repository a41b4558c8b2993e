import { defineConfig } from "vite";
import preact from "@preact/preset-vite";

// The built files ship inside the package, so that users need no Node. Names carry no hashes and
// nothing of the machine: the same sources give the same bytes, which CI checks.
export default defineConfig({
  base: "./",
  plugins: [preact({ devToolsEnabled: false, prefreshEnabled: false })],
  build: {
    outDir: "../curation/service/explorer",
    emptyOutDir: true,
    modulePreload: { polyfill: false },
    sourcemap: false,
    rollupOptions: {
      output: {
        entryFileNames: "assets/explorer.js",
        chunkFileNames: "assets/[name].js",
        assetFileNames: "assets/[name][extname]",
      },
    },
  },
});
