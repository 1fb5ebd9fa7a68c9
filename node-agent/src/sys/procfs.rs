//! A proc file system that is mounted nowhere.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// `FSCONFIG_CMD_CREATE` of `linux/mount.h`.
const CREATE: libc::c_long = 6;
/// `FSOPEN_CLOEXEC` and `FSMOUNT_CLOEXEC`.
const CLOSE_ON_EXEC: libc::c_long = 1;

/// Makes one, of this process's own pid namespace; its descriptor is its root.
pub(crate) fn detached() -> io::Result<OwnedFd> {
    // SAFETY: the name ends with a zero, and the flags are the call's.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), CLOSE_ON_EXEC) })?;
    let fd = context.as_raw_fd();
    let nothing = std::ptr::null::<libc::c_char>();
    // SAFETY: `fd` is the context made above; this command takes neither key nor value.
    if unsafe { libc::syscall(libc::SYS_fsconfig, fd, CREATE, nothing, nothing, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a context whose file system has been made; no attributes are asked for.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fd, CLOSE_ON_EXEC, 0) })
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_the_processes_of_this_namespace() {
        match detached() {
            Ok(own) => {
                let name = std::fs::read_to_string(format!("/proc/self/fd/{}/self/comm", own.as_raw_fd())).unwrap();
                assert_eq!(name, std::fs::read_to_string("/proc/self/comm").unwrap());
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }
}
