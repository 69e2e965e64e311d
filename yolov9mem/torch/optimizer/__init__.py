# SPDX-License-Identifier: MIT
"""The accumulating SGD step and the moving average, on the CPU and on a GPU.

================  ================================================================
sgd               AccumulatingSGD itself
deferring         its half that lets a script's own calls wait for the step
deferred          a script's scaler, clip and average, taught to wait
pending           what waits
gradients         what reads a gradient that waits gets it finished
lazy_scalar       a norm that is worked out when somebody reads it
amp               what a GradScaler has to do with a step
step_table        tensors sorted into rows for C
stock_rest        and a rest for stock torch
table_cache       the last step's table, where only gradients are new
gpu_step          the step as two launches
averages, ema     pairs of tensors and their averages; the average as an object
overlap           which tensors share memory
hyper, names      hyper-parameters, checked; what messages call a tensor
================  ================================================================
"""
