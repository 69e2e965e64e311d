# SPDX-License-Identifier: MIT
"""Train YOLOv9 with the command line of the field's train_dual.py.

    python examples/train_dual.py --cfg yolov9-s --data data.yaml --img 640 --batch 16 \
        --epochs 100 --ckpt
    python examples/train_dual.py --demo     # some minutes, no data needed

A first training on a CPU, mAP50 above 0.5 on 292 photographs (BCCD) in 300 steps:

    python examples/train_dual.py --cfg yolov9-t --data bccd/data.yaml --img 160 --batch 8 \
        --accumulate 1 --epochs 8 --close-mosaic 4 --cos-lr --hyp hyp.short.yaml --ckpt

See --help for all flags; --stock trains with stock PyTorch but for the loss.
"""

import sys

from yolov9.main import main

if __name__ == "__main__":
    sys.exit(main())
