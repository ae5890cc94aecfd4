"""The most memory a process started by a test held. Code to paste into what that process runs."""

PEAK_MIB = '''
def peak_mib():
    """Resident memory at its highest. Linux counts `ru_maxrss` from the parent that forked on; VmHWM is its own."""
    import sys
    if sys.platform == "linux":
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 2**10
    if sys.platform == "darwin":
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return 0.0  # Windows has neither
'''
