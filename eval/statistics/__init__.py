"""Statistics of an evaluation: folds by group, intervals of paired differences, families."""
