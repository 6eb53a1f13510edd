"""What the fork server imports beside the package: all that a first training step would import."""

import torch._dynamo
import torch._inductor.compile_fx
import torch.onnx
import torch.utils.tensorboard  # noqa: F401

from mixer_dist import distributed

distributed.prepare_deepspeed()

import deepspeed  # noqa: E402
import deepspeed.module_inject  # noqa: E402, F401
