"""Work as CUDA graphs: captured once per shape, then replayed.

``captured`` has what a graph is made of, ``cache`` the graphs of a fuser.

    "loop"   one launch for the whole loop: initial state, every step's prior and rectification,
             and the luma at the end; between lumas (``ddfm_fast.lumas``) the way there and back.
             No host work between the steps.
    "step"   one launch per step, one before the first and one after the last; which row it is, a
             counter on the device says. For callbacks and progress bars, where a graph of all
             steps takes too much memory, and where it would have more than ``MOST_NODES`` nodes:
             there, unless a callback or a bar follows, a launch has as many steps as stay below.
    "eps"    one evaluation of the prior outside of the loop, as denoising sources takes them; its
             timestep is an input like x.
    "call"   any work on tensors that reads none of them on the host, such as the closed form.

A hundred steps of a UNet are 26,000 nodes, which take seconds to capture and a host's memory to
keep, and save little: a graph of some steps keeps the device busy while the host launches the next.
Conditional nodes would need the driver's own interface for a body that PyTorch captures.

A shape's first call runs eagerly, since most shapes of a mixed folder come once; the second
captures, or ``Fuser.warmup`` does beforehand. A graph's key is all that is frozen into it: device,
shape, every setting, prior and mode. Beyond ``limit`` graphs or ``most_bytes`` the least recently
used is dropped, and its memory with it: each has a pool of its own. The prior's weights are shared.

A capture that fails leaves everything as it was (``runtime.capture``), and the call runs eagerly.
"""
