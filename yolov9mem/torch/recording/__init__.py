# SPDX-License-Identifier: MIT
"""From a module to a recording: what its training forward calls, written down once.

==================  ================================================================
record              runs forward on fakes, leaving nothing behind
recorder            sees every call of a torch function and writes it down
names               what the name of a torch function says
calls               which calls the C core can do: shapes
calls_arithmetic    the same for sums, and for arithmetic with numbers
calls_layers        the same for layers: convolution, batch norm, pooling, ...
calls_gates         the same for gates: means, products, linear layers of one pixel
calls_draws         the same for what draws: dropout of channels
autograd_functions  functions with a backward of their own, a stock call each
frozen_norms        batch norms that a module works out by itself
own_numbers         sums, products and PReLU with one number for each channel
expressions         how small tensors were made of the module's own
derived             what is made of a value without a node: other shapes, places
ir                  what is written down: nodes, refs, stock calls, stages, parts
parts               the end of a recording, cut into stages between the stock calls
to_stock            nodes that no graph is worth making for
trees               arguments and results, taken apart and put together
refs                finding and replacing the refs of a recording
copies, sharing     which tensors are copies of others, or the same memory
fakes               the copy of the module that is recorded, without memory
refusals            errors that fakes alone raise, and a forward may catch
forwards            the forward that a class has beneath ours
closures            functions that hold parts, or another's forward
leaked_fakes        fakes that a forward leaves behind in a cache outside
global_values       what a forward would overwrite outside with its fakes
isolation           the random generators stay as they were
fingerprint         whether the module has changed since
hooks               of modules: those that look on, and those of a forward's own
contents, spies     objects in attributes: their content, and which ones forward reads
cpu_orders          orders of memory that fakes do not have as kernels do
effects, gaps       what a stock call does beside its result; which are recomputed
gradient_paths      to which calls gradients come back
light_gaps          which are where others next to them take too long
arguments           which arguments of forward a recording is for
==================  ================================================================
"""
