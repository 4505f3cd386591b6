"""The limit on open files, of which each connection takes one."""

import resource

UNLIMITED = resource.RLIM_INFINITY


def raise_descriptor_limit(wanted: int) -> int:
    """Raise the soft limit on open files to `wanted`, as far as the hard limit permits.

    Return the soft limit, which may be `UNLIMITED`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft
