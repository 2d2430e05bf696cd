"""Whether a restored folder equals its source. A restore that differs voids the figure."""
import fnmatch
import os
import stat


def walk(root):
    """Relative path -> lstat of everything below a folder."""
    found, todo = {}, [""]
    while todo:
        below = todo.pop()
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                path = os.path.join(below, entry.name)
                found[path] = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(path)
    return found


def same_bytes(one, other):
    with open(one, "rb") as a, open(other, "rb") as b:
        while True:
            left, right = a.read(1 << 20), b.read(1 << 20)
            if left != right:
                return False
            if not left:
                return True


def differences(source, restored, ignored=(), strict=False):
    """What differs, as `PATH: REASON`, at most ten. Kind, permissions, link target and every byte are compared; with `strict` also owner
    and modification time. Paths that match one of the `ignored` patterns are left out.
    """
    wanted, got, found = walk(source), walk(restored), []
    for path in sorted(set(wanted) | set(got)):
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in ignored):
            continue
        if len(found) == 10:
            break
        if path not in got:
            found.append(f"{path}: missing")
            continue
        if path not in wanted:
            found.append(f"{path}: not in the source")
            continue
        old, new = wanted[path], got[path]
        here, there = os.path.join(source, path), os.path.join(restored, path)
        if old.st_mode != new.st_mode:
            found.append(f"{path}: mode {old.st_mode:o} became {new.st_mode:o}")
        elif stat.S_ISLNK(old.st_mode) and os.readlink(here) != os.readlink(there):
            found.append(f"{path}: link target differs")
        elif stat.S_ISREG(old.st_mode) and (old.st_size != new.st_size or not same_bytes(here, there)):
            found.append(f"{path}: content differs")
        elif strict and (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            found.append(f"{path}: owner differs")
        elif strict and old.st_mtime_ns != new.st_mtime_ns:
            found.append(f"{path}: modification time differs")
    return found
