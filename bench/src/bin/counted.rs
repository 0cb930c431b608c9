//! `millrace` with an allocator that counts, for the figure of allocations per request. It takes the arguments of
//! `millrace`; whoever connects to the Unix socket that `MILLRACE_COUNT_SOCKET` names reads the count as a line.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts allocations and growth; what is given back is not counted.
struct Counting;

static COUNT: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed to the system's allocator unchanged, which keeps the contract of the trait; the
// counter touches nothing of the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: `place` came from `System` through `alloc` or `realloc` with this layout, as the caller promises.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for `dealloc`, and the caller promises that `bytes` is not zero and does not overflow.
        unsafe { System.realloc(place, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() -> ExitCode {
    if let Some(path) = std::env::var_os("MILLRACE_COUNT_SOCKET") {
        let listener = match UnixListener::bind(&path) {
            Ok(listener) => listener,
            Err(error) => {
                eprintln!("cannot listen on {}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A reader that leaves early has nothing to complain about.
                let _ = stream.and_then(|mut stream| writeln!(stream, "{}", COUNT.load(Ordering::Relaxed)));
            }
        });
    }
    millrace_dataplane::cli::main()
}
