//! Memory for large arrays that are read at random places: in pages of 2 MiB where the system has some, because a walk
//! over a hundred megabytes misses the processor's table of small pages at nearly every step.
#![allow(unsafe_code)]

/// Smaller arrays fit the table as they are.
const LARGE_FROM_BYTES: usize = 8 << 20;
const PAGE_BYTES: usize = 4_096;

/// An empty vector with room for so many items. The advice has to come before the memory is first touched.
pub(crate) fn with_capacity<T>(count: usize) -> Vec<T> {
    let room: Vec<T> = Vec::with_capacity(count);
    advise(room.as_ptr().addr(), room.capacity() * size_of::<T>());
    room
}

fn advise(start: usize, bytes: usize) {
    let (from, to) = (start.next_multiple_of(PAGE_BYTES), (start + bytes) / PAGE_BYTES * PAGE_BYTES);
    if bytes < LARGE_FROM_BYTES || from >= to {
        return;
    }
    #[cfg(target_os = "linux")]
    // SAFETY: advice reads and changes no content; the range is whole pages inside one allocation that the caller owns. A
    // system that refuses it leaves small pages.
    unsafe {
        libc::madvise(std::ptr::without_provenance_mut(from), to - from, libc::MADV_HUGEPAGE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advised_memory_is_used_like_any() {
        for count in [0, 1, 3 << 20] {
            let mut items: Vec<u32> = with_capacity(count);
            assert!(items.is_empty() && items.capacity() >= count);
            items.resize(count, 7);
            assert!(items.iter().all(|item| *item == 7));
        }
    }
}
