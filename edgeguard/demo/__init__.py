"""`make demo`: the main job on real traffic, as separate processes, with what was expected beside what was seen."""
