"""What is typed and what is seen. The verbs are in `verbs`; `ui` is everything a person reads.

Arguments go in, an exit code comes out. It lies on top, and imports torch only for the verbs that compute.
"""
