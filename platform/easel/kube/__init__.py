"""What `easel kube` does: looks at an Easel on Kubernetes, says what is wrong and what to do about it, goes back.

Owns: talking to the API server, with the official client and the least rights; what a RayService's state means.
Refuses to know: Ray, engines, how anything is rendered into a cluster (that is the chart), and Helm's storage.

`connection` makes the calls and turns every way in which they fail into one of `failures`. `objects` turns answers into
plain values. What these mean is decided in `upgrade`, `checks` and `undo`, which call nobody; `snapshot` and `doctor`
collect what those need, and go on without what they have no right to see.
"""
