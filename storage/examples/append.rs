//! Durable appends per second: 64 writers, one sealed message of 1 KiB each at a time, beside what a
//! bare sync of the same disk costs. Prints JSON lines.
//!
//! ```text
//! cargo run --release -p millrace-storage --example append -- [FOLDER] [SECONDS]
//! ```

use millrace_proto::id::{ConversationId, TenantId};
use millrace_proto::record::{Message, Role};
use millrace_storage::{Batch, Store, StoreOptions};
use std::error::Error;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const WRITERS: u64 = 64;
const TEXT_BYTES: usize = 1_024;
/// What one group of 64 such messages puts into the log.
const GROUP_BYTES: usize = 72 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().map_or_else(|| std::env::temp_dir().join("millrace-append"), PathBuf::from);
    let seconds: u64 = args.next().map_or(Ok(5), |text| text.parse())?;
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    sync_cost(&folder, "512 B", 512)?;
    let sync_p99 = sync_cost(&folder, "72 KiB", GROUP_BYTES)?;
    let store = Store::open(&StoreOptions::new(folder.join("store")))?;
    run(&store, Duration::from_secs(1))?;
    let mut waits = run(&store, Duration::from_secs(seconds))?;
    let before = store.stats();
    println!(
        "{{\"figure\":\"storage.append\",\"value\":{:.0},\"unit\":\"durable appends/s\",\"writers\":{WRITERS},\"bytes\":{TEXT_BYTES},\
         \"p50_us\":{},\"p99_us\":{},\"max_us\":{},\"p99_over_sync_p99\":{:.2},\"batches_per_sync\":{:.1}}}",
        waits.len() as f64 / seconds as f64,
        percentile(&mut waits, 0.50),
        percentile(&mut waits, 0.99),
        percentile(&mut waits, 1.0),
        percentile(&mut waits, 0.99) as f64 / sync_p99 as f64,
        before.batches as f64 / before.groups as f64,
    );
    store.shutdown();
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// A chain per writer: the completion of one append submits the next, so 64 are always under way.
fn run(store: &Store, duration: Duration) -> Result<Vec<u64>, Box<dyn Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicU64::new(0));
    let (sender, receiver) = mpsc::channel();
    for writer in 0..WRITERS {
        let chain = Chain {
            store: store.clone(),
            conversation: ConversationId::of(TenantId::DEFAULT, &format!("writer {writer}")),
            stop: Arc::clone(&stop),
            next: Arc::clone(&next),
            sender: sender.clone(),
        };
        chain.step();
    }
    drop(sender);
    std::thread::sleep(duration);
    stop.store(true, Ordering::Relaxed);
    Ok(receiver.into_iter().collect())
}

struct Chain {
    store: Store,
    conversation: ConversationId,
    stop: Arc<AtomicBool>,
    next: Arc<AtomicU64>,
    sender: mpsc::Sender<u64>,
}

impl Chain {
    fn step(self) {
        if self.stop.load(Ordering::Relaxed) {
            return;
        }
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let message =
            Message { seq, turn: seq, role: Role::User, text: "x".repeat(TEXT_BYTES), at_ms: seq, tokens: 256 };
        let mut batch = Batch::new();
        batch.append_message(TenantId::DEFAULT, self.conversation, &message);
        let started = Instant::now();
        let store = self.store.clone();
        let submitted = store.submit(
            batch,
            Box::new(move |result| {
                result.expect("the disk takes it");
                let waited = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                if self.sender.send(waited).is_ok() {
                    self.step();
                }
            }),
        );
        submitted.expect("64 batches fit into the queue");
    }
}

/// Overwrites a file in place, as the recycled log does, with a sync after each write.
fn sync_cost(folder: &Path, name: &str, bytes: usize) -> Result<u64, Box<dyn Error>> {
    let path = folder.join("sync.probe");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    file.write_all_at(&vec![1; bytes * 64], 0)?;
    file.sync_all()?;
    let block = vec![2; bytes];
    let mut waits = Vec::new();
    for n in 0..400u64 {
        let started = Instant::now();
        file.write_all_at(&block, (n % 64) * bytes as u64)?;
        file.sync_data()?;
        waits.push(u64::try_from(started.elapsed().as_micros())?);
    }
    std::fs::remove_file(&path)?;
    let (p50, p99) = (percentile(&mut waits, 0.50), percentile(&mut waits, 0.99));
    println!("{{\"figure\":\"storage.fdatasync\",\"write\":\"{name}\",\"unit\":\"us\",\"p50\":{p50},\"p99\":{p99}}}");
    Ok(p99.max(1))
}

fn percentile(waits: &mut [u64], share: f64) -> u64 {
    waits.sort_unstable();
    let at = ((waits.len() as f64 * share) as usize).min(waits.len().saturating_sub(1));
    waits.get(at).copied().unwrap_or(0)
}
