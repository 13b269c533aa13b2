"""The run-time checker of annotations. It is imported only if `SSMKIT_TYPECHECK=1`."""

import jaxtyping
from beartype import BeartypeConf, beartype


class TypeCheckError(jaxtyping.TypeCheckError, jaxtyping.AnnotationError):
    """An argument or a result is not what its annotation says.

    jaxtyping re-raises an `AnnotationError` unchanged. To any other exception it adds all printed arguments of the
    call, so that the message for one wrong number would contain a whole model.
    """


checked = beartype(conf=BeartypeConf(violation_type=TypeCheckError))
