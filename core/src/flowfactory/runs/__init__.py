"""What a run leaves in its folder, written so that nothing is lost: checkpoints, samples, history, the environment.

Values of the loop go in, files come out, and the other way round when a run is resumed, reported or exported.
"""
