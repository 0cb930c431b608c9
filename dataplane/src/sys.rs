//! The few system calls that the standard library does not offer.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{FromRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Free and total bytes of the file system that holds `path`, as an ordinary user may use them.
pub fn disk_space(path: &Path) -> io::Result<(u64, u64)> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `name` is a NUL-terminated string that lives through the call, and statvfs(3) writes the whole
    // structure before it returns 0.
    let found = unsafe {
        if libc::statvfs(name.as_ptr(), found.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        found.assume_init()
    };
    Ok((found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize))
}

/// Raises the soft limit of open files to the hard one; returns the limit that holds now.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) and setrlimit(2) only read or write the one structure they are given.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        if limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(limit.rlim_cur)
}

/// Bounds this process for good: address space, processor seconds, no core file, no file that it could write.
pub fn confine(memory_bytes: u64, cpu_seconds: u64) -> io::Result<()> {
    for (resource, value) in [
        (libc::RLIMIT_AS, memory_bytes),
        (libc::RLIMIT_CPU, cpu_seconds),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_FSIZE, 0),
    ] {
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        // SAFETY: setrlimit(2) only reads the one structure it is given.
        if unsafe { libc::setrlimit(resource, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Keeps the C library's heap small, which is that of RocksDB and FAISS: many threads would otherwise each keep an arena of freed memory.
pub fn bound_heap_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two integers and may be called at any time; this runs before threads start.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
    }
}

/// Gives freed pages of the same heap back to the system, after a start that needed much for a short time.
pub fn release_free_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) has no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets a descriptor of ours live on in the next image of this process.
pub fn keep_over_exec(fd: RawFd) -> io::Result<()> {
    set_close_on_exec(fd, false)
}

fn set_close_on_exec(fd: RawFd, close: bool) -> io::Result<()> {
    // SAFETY: fcntl(2) with F_SETFD takes two integers and touches no memory of ours; a number that is no
    // open descriptor is an error.
    let done = unsafe { libc::fcntl(fd, libc::F_SETFD, if close { libc::FD_CLOEXEC } else { 0 }) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes over a listening socket that the image before this one has left open. The caller must name each
/// number once, and only numbers that were left for it: ownership begins here.
pub fn adopt_listener(fd: RawFd) -> io::Result<TcpListener> {
    if socket_fact(fd, libc::SO_ACCEPTCONN)? == 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    set_close_on_exec(fd, true)?;
    // SAFETY: `fd` is an open listening socket, as the kernel has just said, and the caller keeps the promise
    // that nobody else in this process owns it.
    Ok(unsafe { TcpListener::from_raw_fd(fd) })
}

/// The same for a socket of datagrams.
pub fn adopt_datagrams(fd: RawFd) -> io::Result<UdpSocket> {
    if socket_fact(fd, libc::SO_TYPE)? != libc::SOCK_DGRAM {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    set_close_on_exec(fd, true)?;
    // SAFETY: `fd` is an open socket of datagrams, as the kernel has just said, and the caller keeps the promise
    // that nobody else in this process owns it.
    Ok(unsafe { UdpSocket::from_raw_fd(fd) })
}

/// A number that the kernel tells of a socket.
fn socket_fact(fd: RawFd, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut fact: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: getsockopt(2) writes at most `length` bytes into `fact`, which lives through the call; a number that
    // is no socket is an error.
    let asked = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut fact).cast(), &raw mut length) };
    if asked == 0 { Ok(fact) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_of_the_temporary_folder_has_a_size() {
        let (free, total) = disk_space(&std::env::temp_dir()).unwrap();
        assert!(total > 0 && free <= total);
        assert!(disk_space(Path::new("/no/such/folder")).is_err());
    }

    #[test]
    fn only_listening_sockets_are_taken_over() {
        use std::os::fd::IntoRawFd as _;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let fd = listener.into_raw_fd();
        keep_over_exec(fd).unwrap();
        assert_eq!(adopt_listener(fd).unwrap().local_addr().unwrap(), address);
        assert!(adopt_listener(-1).is_err() && keep_over_exec(-1).is_err());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(adopt_listener(std::os::fd::AsRawFd::as_raw_fd(&file)).is_err(), "a file is no socket");
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(adopt_listener(std::os::fd::AsRawFd::as_raw_fd(&datagrams)).is_err(), "nobody connects to it");
        let address = datagrams.local_addr().unwrap();
        assert_eq!(adopt_datagrams(datagrams.into_raw_fd()).unwrap().local_addr().unwrap(), address);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(adopt_datagrams(std::os::fd::AsRawFd::as_raw_fd(&listener)).is_err(), "it carries streams");
    }

    #[test]
    fn open_files_can_be_raised_to_the_hard_limit() {
        let raised = raise_open_files().unwrap();
        assert_eq!(raise_open_files().unwrap(), raised);
    }
}
