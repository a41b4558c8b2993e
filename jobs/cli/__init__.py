"""The command line: one command per stage, and the questions people ask of a store."""

import gc

# Python looks for garbage after each 700 new objects; loading libraries makes half a million that
# stay. A question is answered a tenth sooner when it looks less often.
gc.set_threshold(100_000, 20, 20)
