"""How talking to a cluster fails, each with the exit code by which scripts can tell them apart.

    KubeError                 1  the API server said no to something that Easel did not expect
      WrongContext            2  no kubeconfig, no such context, or a file that cannot be read
      Unreachable             3  the API server does not answer, or not in time
      Missing                 4  the namespace, the release or an object of it is not there
      NotAllowed              5  a right is missing without which nothing can be said; `right` names it
      Conflict                1  somebody changed the object meanwhile

0 is all right, 1 a failure that was found in the cluster, 6 an upgrade that still ran when the time was over.
"""

from __future__ import annotations

from typing import ClassVar

from easel.errors import EaselError
from easel.kube.rights import Right, rules

STILL_RUNNING = 6
"""`rollout status` gave up waiting; nothing has failed."""


class KubeError(EaselError):
    code = "cluster_error"
    exit_code: ClassVar[int] = 1


class WrongContext(KubeError):
    exit_code = 2


class Unreachable(KubeError):
    exit_code = 3


class Missing(KubeError):
    exit_code = 4


class NotAllowed(KubeError):
    exit_code = 5

    def __init__(self, right: Right, who: str = "you") -> None:
        super().__init__(f"{who} may not {right}. The rule that allows it:\n\n{rules([right])}")
        self.right = right


class Conflict(KubeError):
    pass
