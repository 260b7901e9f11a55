"""The recipe of tiny-chatglm: its text world, its vocabulary, its pretraining and the rows to tune it on.

`scripts/build_tiny.sh` runs the steps in order; each module runs on its own with `python -m scripts.tiny.<module>`.
"""
