//! A thin safe layer over FAISS's C interface: build once, search many, write and read as a stream.
//!
//! Only what sealed segments need. Known traps of the library that this layer closes: it opens a
//! team of threads for training and adding (set to one here), search with a filter leaks its
//! selector in the usual wrapper (owned here), the filter's bitmap is a borrowed pointer (it cannot
//! outlive its call here), the stream callbacks carry no context (a thread-local holds it), and a
//! read trusts the sizes in the file (callers authenticate the bytes first).
#![allow(unsafe_code)]

use faiss_sys as ffi;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_int, c_void};
use std::io::{self, Read, Write};
use std::ptr::{self, NonNull};

unsafe extern "C" {
    /// OpenMP: team size of parallel regions that this thread opens. Part of libgomp, which FAISS links.
    fn omp_set_num_threads(threads: c_int);
}

/// One thread for FAISS's parallel regions on the calling thread: the pool decides about parallelism.
pub(crate) fn quiet_math_threads() {
    // SAFETY: a plain setter of a per-thread control variable.
    unsafe { omp_set_num_threads(1) }
}

/// What FAISS said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the vector library refused to {act}: {detail}")]
pub(crate) struct FaissError {
    act: &'static str,
    detail: String,
}

fn check(act: &'static str, code: c_int) -> Result<(), FaissError> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: after a failure the library hands out its thread-local message, valid until its next call.
    let detail = unsafe {
        let text = ffi::faiss_get_last_error();
        if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    };
    Err(FaissError { act, detail })
}

/// Which structure a segment gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Eight bits a number, every row compared: best up to some thousand rows.
    Sq8,
    /// An inverted file of so many lists over eight-bit rows: added to a hundred times faster than a graph, for
    /// spaces too large for one.
    IvfSq8(usize),
}

/// An index that is complete. Searching takes `&self`, so it may be shared between threads.
pub(crate) struct FaissIndex {
    raw: NonNull<ffi::FaissIndex>,
    dim: usize,
}

// SAFETY: FAISS's CPU indexes have no thread affinity, and concurrent searches are allowed while
// nobody changes the index; every changing method takes `&mut self`.
unsafe impl Send for FaissIndex {}
// SAFETY: as above.
unsafe impl Sync for FaissIndex {}

impl Drop for FaissIndex {
    fn drop(&mut self) {
        // SAFETY: `raw` came from the library and is freed once.
        unsafe { ffi::faiss_Index_free(self.raw.as_ptr()) }
    }
}

impl FaissIndex {
    /// An empty index for inner products.
    pub fn new(kind: Kind, dim: usize) -> Result<Self, FaissError> {
        let factory = CString::new(match kind {
            Kind::Sq8 => "SQ8".to_owned(),
            Kind::IvfSq8(lists) => format!("IVF{lists},SQ8"),
        })
        .expect("the names have no zero byte");
        let width = c_int::try_from(dim).expect("EMBEDDING_DIM_MAX fits into an int");
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is a place for one pointer, the factory text ends with zero and outlives the call.
        let code = unsafe {
            ffi::faiss_index_factory(&mut raw, width, factory.as_ptr(), ffi::FaissMetricType_METRIC_INNER_PRODUCT)
        };
        check("make an index", code)?;
        Self::own(raw)
    }

    fn own(raw: *mut ffi::FaissIndex) -> Result<Self, FaissError> {
        let raw = NonNull::new(raw)
            .ok_or(FaissError { act: "hand out an index", detail: "it gave a null pointer".to_owned() })?;
        // SAFETY: `raw` is a live index.
        let dim = unsafe { ffi::faiss_Index_d(raw.as_ptr()) };
        Ok(Self { raw, dim: usize::try_from(dim).unwrap_or(0) })
    }

    /// Tunes searching. Before the index is shared: it changes the index.
    pub fn tune_search(&mut self, kind: Kind) -> Result<(), FaissError> {
        match kind {
            Kind::Sq8 => Ok(()),
            Kind::IvfSq8(lists) => self.set("nprobe", (lists as f64 / 32.0).max(1.0)),
        }
    }

    fn set(&mut self, name: &str, value: f64) -> Result<(), FaissError> {
        let name = CString::new(name).expect("the names have no zero byte");
        let mut space = ptr::null_mut();
        // SAFETY: a place for one pointer; the object is freed below; the index is exclusively ours.
        unsafe {
            check("make a parameter space", ffi::faiss_ParameterSpace_new(&mut space))?;
            let code = ffi::faiss_ParameterSpace_set_index_parameter(space, self.raw.as_ptr(), name.as_ptr(), value);
            ffi::faiss_ParameterSpace_free(space);
            check("set a parameter", code)
        }
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    pub fn len(&self) -> usize {
        // SAFETY: a getter of a live index.
        usize::try_from(unsafe { ffi::faiss_Index_ntotal(self.raw.as_ptr()) }).unwrap_or(0)
    }

    fn rows(&self, vectors: &[f32]) -> i64 {
        assert!(vectors.len().is_multiple_of(self.dim), "rows have the index's length");
        i64::try_from(vectors.len() / self.dim).expect("rows in memory fit into an i64")
    }

    /// Learns the range of each number from a sample.
    pub fn train(&mut self, vectors: &[f32]) -> Result<(), FaissError> {
        let rows = self.rows(vectors);
        // SAFETY: `vectors` holds `rows` x `dim` numbers and outlives the call.
        check("train", unsafe { ffi::faiss_Index_train(self.raw.as_ptr(), rows, vectors.as_ptr()) })
    }

    /// Adds rows; they are numbered in order.
    pub fn add(&mut self, vectors: &[f32]) -> Result<(), FaissError> {
        let rows = self.rows(vectors);
        // SAFETY: as in `train`.
        check("add rows", unsafe { ffi::faiss_Index_add(self.raw.as_ptr(), rows, vectors.as_ptr()) })
    }

    /// The `k` rows with the largest inner product among those whose bit is set in `alive`. An inverted file reads
    /// `lists` of its lists; for another kind that is `None`.
    pub fn search(
        &self,
        query: &[f32],
        k: usize,
        alive: &[u8],
        lists: Option<usize>,
    ) -> Result<Vec<(u32, f32)>, FaissError> {
        assert_eq!(query.len(), self.dim, "the query has the index's length");
        assert!(alive.len() * 8 >= self.len(), "one bit for each row");
        let wanted = i64::try_from(k).expect("k is bounded far below");
        let mut scores = vec![0.0f32; k];
        let mut labels = vec![-1i64; k];
        let selector = Selector::new(alive, lists)?;
        // SAFETY: the query has `dim` numbers, both results have room for `k`, the parameters and the bitmap
        // behind them live until the end of this function.
        let code = unsafe {
            ffi::faiss_Index_search_with_params(
                self.raw.as_ptr(),
                1,
                query.as_ptr(),
                wanted,
                selector.params,
                scores.as_mut_ptr(),
                labels.as_mut_ptr(),
            )
        };
        check("search", code)?;
        let found = labels.into_iter().zip(scores);
        Ok(found.filter_map(|(label, score)| Some((u32::try_from(label).ok()?, score))).collect())
    }

    /// Writes the index as a stream.
    pub fn write_to<W: Write + 'static>(&self, sink: W) -> io::Result<W> {
        let writer = stream::with_writer(sink, |io_writer| {
            // SAFETY: both objects are live; the flags ask for everything.
            let code = unsafe { ffi::faiss_write_index_custom(self.raw.as_ptr(), io_writer, 0) };
            check("write an index", code)
        })?;
        Ok(writer)
    }

    /// Reads what [`FaissIndex::write_to`] wrote. The bytes must be authentic: the library trusts their sizes.
    pub fn read_from<R: Read + 'static>(source: R) -> io::Result<Self> {
        stream::with_reader(source, |io_reader| {
            let mut raw = ptr::null_mut();
            // SAFETY: the reader is live, `raw` is a place for one pointer.
            let code = unsafe { ffi::faiss_read_index_custom(io_reader, 0, &mut raw) };
            check("read an index", code)?;
            Self::own(raw)
        })
    }
}

/// Search parameters with a filter; the borrow keeps the bitmap alive.
struct Selector<'a> {
    selector: *mut ffi::FaissIDSelectorBitmap,
    params: *mut ffi::FaissSearchParameters,
    _bits: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> Selector<'a> {
    fn new(alive: &'a [u8], lists: Option<usize>) -> Result<Self, FaissError> {
        let mut made = Self { selector: ptr::null_mut(), params: ptr::null_mut(), _bits: std::marker::PhantomData };
        // SAFETY: both calls fill one pointer; the library keeps a pointer to `alive`, which outlives `made`.
        unsafe {
            check("make a filter", ffi::faiss_IDSelectorBitmap_new(&mut made.selector, alive.len(), alive.as_ptr()))?;
            let selector: *mut ffi::FaissIDSelector = made.selector.cast();
            match lists {
                None => check("make parameters", ffi::faiss_SearchParameters_new(&mut made.params, selector))?,
                Some(lists) => {
                    let mut params = ptr::null_mut();
                    let code = ffi::faiss_SearchParametersIVF_new_with(&mut params, selector, lists, 0);
                    check("make parameters", code)?;
                    made.params = params.cast();
                }
            }
        }
        Ok(made)
    }
}

impl Drop for Selector<'_> {
    fn drop(&mut self) {
        // SAFETY: each was made by the library and is freed once; the parameters do not own the selector.
        unsafe {
            if !self.params.is_null() {
                ffi::faiss_SearchParameters_free(self.params);
            }
            if !self.selector.is_null() {
                ffi::faiss_IDSelectorBitmap_free(self.selector);
            }
        }
    }
}

/// Streams for callbacks without a context: the current stream of a thread stands in a thread-local.
mod stream {
    use super::{FaissError, RefCell, c_void, check, ffi, io, ptr};
    use std::any::Any;
    use std::io::{Read, Write};

    trait AnyWrite: Write {
        fn into_any(self: Box<Self>) -> Box<dyn Any>;
    }
    impl<W: Write + 'static> AnyWrite for W {
        fn into_any(self: Box<Self>) -> Box<dyn Any> {
            self
        }
    }

    struct Current<S: ?Sized> {
        stream: Box<S>,
        failure: Option<io::Error>,
    }

    thread_local! {
        static WRITER: RefCell<Option<Current<dyn AnyWrite>>> = const { RefCell::new(None) };
        static READER: RefCell<Option<Current<dyn Read>>> = const { RefCell::new(None) };
    }

    /// # Safety
    /// Called by the library with `size * items` readable bytes at `data`.
    unsafe extern "C" fn write(data: *const c_void, size: usize, items: usize) -> usize {
        let Some(bytes) = size.checked_mul(items).filter(|bytes| *bytes > 0) else { return items };
        WRITER.with_borrow_mut(|current| {
            let Some(current) = current else { return 0 };
            // SAFETY: the caller's promise.
            let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), bytes) };
            match current.stream.write_all(data) {
                Ok(()) => items,
                Err(error) => {
                    current.failure = Some(error);
                    0
                }
            }
        })
    }

    /// # Safety
    /// Called by the library with `size * items` writable bytes at `data`.
    unsafe extern "C" fn read(data: *mut c_void, size: usize, items: usize) -> usize {
        let Some(bytes) = size.checked_mul(items).filter(|bytes| *bytes > 0) else { return items };
        READER.with_borrow_mut(|current| {
            let Some(current) = current else { return 0 };
            // SAFETY: the caller's promise; the bytes may be uninitialised, so they are zeroed before they are lent.
            let data = unsafe {
                ptr::write_bytes(data.cast::<u8>(), 0, bytes);
                std::slice::from_raw_parts_mut(data.cast::<u8>(), bytes)
            };
            match current.stream.read_exact(data) {
                Ok(()) => items,
                Err(error) => {
                    current.failure = Some(error);
                    0
                }
            }
        })
    }

    pub(super) fn with_writer<W: Write + 'static>(
        sink: W,
        run: impl FnOnce(*mut ffi::FaissIOWriter) -> Result<(), FaissError>,
    ) -> io::Result<W> {
        WRITER.set(Some(Current { stream: Box::new(sink), failure: None }));
        let mut raw = ptr::null_mut();
        // SAFETY: a place for one pointer, a callback with the library's signature; freed below.
        let result = unsafe { check("make a writer", ffi::faiss_CustomIOWriter_new(&mut raw, Some(write))) }
            .and_then(|()| run(raw.cast()));
        if !raw.is_null() {
            // SAFETY: made above, freed once.
            unsafe { ffi::faiss_CustomIOWriter_free(raw) }
        }
        let current = WRITER.take().expect("set above on this thread");
        finish(result, current.failure)?;
        Ok(*current.stream.into_any().downcast::<W>().expect("the stream that was put in"))
    }

    pub(super) fn with_reader<R: Read + 'static, T>(
        source: R,
        run: impl FnOnce(*mut ffi::FaissIOReader) -> Result<T, FaissError>,
    ) -> io::Result<T> {
        READER.set(Some(Current { stream: Box::new(source), failure: None }));
        let mut raw = ptr::null_mut();
        // SAFETY: as in `with_writer`.
        let result = unsafe { check("make a reader", ffi::faiss_CustomIOReader_new(&mut raw, Some(read))) }
            .and_then(|()| run(raw.cast()));
        if !raw.is_null() {
            // SAFETY: made above, freed once.
            unsafe { ffi::faiss_CustomIOReader_free(raw) }
        }
        let current = READER.take().expect("set above on this thread");
        finish(result, current.failure)
    }

    /// The stream's own error says more than the library's "short write".
    fn finish<T>(result: Result<T, FaissError>, failure: Option<io::Error>) -> io::Result<T> {
        match (result, failure) {
            (_, Some(failure)) => Err(failure),
            (Err(error), None) => Err(io::Error::other(error)),
            (Ok(value), None) => Ok(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::vector::{Block, VectorRow};
    use std::time::{Duration, Instant};

    fn rows(count: usize, dim: usize) -> Vec<f32> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        (0..count * dim)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            })
            .collect()
    }

    fn built(kind: Kind, data: &[f32], dim: usize) -> FaissIndex {
        quiet_math_threads();
        let mut index = FaissIndex::new(kind, dim).unwrap();
        index.train(data).unwrap();
        index.add(data).unwrap();
        index.tune_search(kind).unwrap();
        index
    }

    #[test]
    fn both_kinds_find_a_row_write_and_read_back() {
        let (dim, count) = (24, 600);
        let data = rows(count, dim);
        let alive = vec![u8::MAX; count / 8];
        for (kind, lists) in [(Kind::Sq8, None), (Kind::IvfSq8(8), Some(8))] {
            let index = built(kind, &data, dim);
            let stream = index.write_to(Vec::new()).unwrap();
            let again = FaissIndex::read_from(std::io::Cursor::new(stream.clone())).unwrap();
            assert_eq!((again.len(), again.dim()), (count, dim));
            for row in [0, 17, count - 1] {
                let query = &data[row * dim..(row + 1) * dim];
                let found = index.search(query, 5, &alive, lists).unwrap();
                assert!(found.iter().any(|(at, _)| *at as usize == row), "{kind:?}");
                assert_eq!(again.search(query, 5, &alive, lists).unwrap(), found, "{kind:?}");
                let mut without = alive.clone();
                without[row / 8] &= !(1 << (row % 8));
                assert!(
                    index.search(query, 5, &without, lists).unwrap().iter().all(|(at, _)| *at as usize != row),
                    "{kind:?}"
                );
            }
            assert!(FaissIndex::read_from(std::io::Cursor::new(stream[..stream.len() / 2].to_vec())).is_err());
        }
    }

    #[test]
    fn more_results_than_rows_are_simply_fewer() {
        let index = built(Kind::Sq8, &rows(16, 8), 8);
        assert_eq!(index.search(&[0.1; 8], 50, &[u8::MAX; 2], None).unwrap().len(), 16);
        assert_eq!(index.search(&[0.1; 8], 50, &[0; 2], None).unwrap(), []);
    }

    /// A library that was built for a plain x86-64 decodes the eight-bit rows one number at a time and is six
    /// times slower. The bound is our own kernel on the same rows in the same run, so a slow or busy
    /// machine moves both sides; the best of many short runs leaves out what other processes took.
    #[test]
    fn the_library_was_built_with_vector_instructions() {
        let (dim, count) = (384, 20_000);
        let data = rows(count, dim);
        let index = built(Kind::Sq8, &data, dim);
        let mut block = Block::new(dim);
        for (at, row) in data.chunks_exact(dim).enumerate() {
            block.put(at, &VectorRow::new(0, 0, row).vector);
        }
        let alive = vec![u8::MAX; count / 8];
        let query = &data[..dim];
        let best = |run: &mut dyn FnMut()| {
            (0..30).fold(Duration::MAX, |best, _| {
                let started = Instant::now();
                run();
                best.min(started.elapsed())
            })
        };
        let library = best(&mut || drop(index.search(query, 10, &alive, None).unwrap()));
        let own = best(&mut || drop(block.nearest(query, 10, |_| true)));
        println!("20,000 x 384: library {library:?}, own half-precision scan {own:?}");
        assert!(library < own * 6, "the library took {library:?}, our scan {own:?}: it was built without AVX2");
    }
}
