"""The run-time checker of annotations, imported only where `SSMKIT_TYPECHECK=1` asks for it."""

import jaxtyping
from beartype import BeartypeConf, beartype


class TypeCheckError(jaxtyping.TypeCheckError, jaxtyping.AnnotationError):
    """An argument or a result is not what its annotation says.

    jaxtyping hands on an `AnnotationError` as it is. To any other it adds every argument of the call, printed: the
    message of one wrong number would hold a whole model.
    """


checked = beartype(conf=BeartypeConf(violation_type=TypeCheckError))
