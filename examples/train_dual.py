# SPDX-License-Identifier: MIT
"""Train YOLOv9 with the command line of the field's train_dual.py.

    python examples/train_dual.py --cfg yolov9-s --data data.yaml --img 640 --batch 16 \
        --epochs 100 --ckpt
    python examples/train_dual.py --demo     # two minutes, no data needed

See yolov9/options.py or --help for all flags.
"""

import sys

from yolov9.main import main

if __name__ == "__main__":
    sys.exit(main())
