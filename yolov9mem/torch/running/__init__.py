# SPDX-License-Identifier: MIT
"""From a recording to a training step: graphs of the C core, run under autograd.

==================  ================================================================
registry            how a module's forward comes here, leaving no trace in the module
entry               one checkpointed module: stock or ours, decided at every forward
conditions          the reasons for stock
replica             the module as torch.nn.DataParallel copies it for one forward
invocation          one call of forward: the module, its arguments, its stock forward
lower               from a part of a recording to a graph of the core
gradient_flow       what in a recording wants gradients
planned             the plans of such a graph
lowered             a recording with its graphs, and their tensors in a module
binding             those tensors: parameters and batch norm state, found by path
autograd_nodes      one call: forward in C, and backward as autograd's nodes
shared_call         what these nodes share
backward_state      what these share during a backward
inputs              of the stages: held, packed, let go
gradients           sums that are in .grad already, and that the kernels add to
arenas              memory for the core, from torch's allocator
forward_calls       one forward: the stages and the stock calls around them, in order
stock_calls         these calls, replayed
recompute           those between two stages, recomputed in backward
recompute_choice    which of them are, and which outputs of stages for stock calls
promises            what autograd saves for stock calls in place of a tensor
recomputed_outputs  outputs of stages for which it does, which the core recomputes
surroundings        what the calls find in backward as it was around forward
byte_counts         what is held between forward and backward, by us and by stock
==================  ================================================================
"""
