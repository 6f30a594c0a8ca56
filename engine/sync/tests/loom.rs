//! The interleavings and reorderings of what threads share, by loom. Run with `RUSTFLAGS="--cfg loom"`, `--release` and
//! `--test loom`; without that there is nothing here.
#![cfg(loom)]

use std::sync::Arc as PlainArc;
use std::sync::atomic::{AtomicUsize as PlainUsize, Ordering::SeqCst as PLAIN};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use patronus_sync::{
    Bell, Domain, Layout, RingReceiver, RingSender, SeqLock, Words, WordsMut, publish, ring,
};

/// Tries the executions with up to three preemptions, which is where such errors are.
fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

#[test]
fn a_ring_hands_over_every_value_once_and_in_order() {
    model(|| {
        let (mut producer, mut consumer) = ring::<Box<usize>>(2);
        let thread = thread::spawn(move || {
            let mut sent = 0;
            for round in 0..2 {
                let mut values = [2 * round, 2 * round + 1].map(Box::new).into_iter();
                sent += producer.push_some(&mut values);
                if values.len() > 0 {
                    break;
                }
            }
            sent
        });
        let mut next = 0;
        for _ in 0..3 {
            for value in consumer.drain(2) {
                assert_eq!(*value, next);
                next += 1;
            }
        }
        let sent = thread.join().unwrap();
        next += consumer.drain(4).count();
        assert_eq!(next, sent);
    });
}

#[test]
fn a_ring_with_values_in_it_is_dropped_by_either_end() {
    model(|| {
        let (mut producer, mut consumer) = ring::<Arc<()>>(2);
        let value = Arc::new(());
        let clone = Arc::clone(&value);
        let thread = thread::spawn(move || {
            let _ = producer.push(Arc::clone(&clone));
            let _ = producer.push(clone);
        });
        drop(consumer.pop());
        drop(consumer);
        thread.join().unwrap();
        assert_eq!(Arc::strong_count(&value), 1);
    });
}

#[test]
fn what_is_put_in_is_seen_together_once_it_is_published() {
    model(|| {
        let (mut producer, mut consumer) = ring::<Box<usize>>(2);
        let thread = thread::spawn(move || {
            assert!(producer.put(Box::new(0)).is_ok() && producer.put(Box::new(1)).is_ok());
            assert_eq!((producer.publish(), producer.publish()), (2, 0));
        });
        let seen = consumer.drain(2).map(|value| *value).collect::<Vec<_>>();
        assert!(seen.is_empty() || seen == [0, 1], "{seen:?}");
        thread.join().unwrap();
    });
}

#[test]
fn what_was_never_published_is_not_lost_with_the_producer() {
    model(|| {
        let (mut producer, consumer) = ring::<Arc<()>>(2);
        let value = Arc::new(());
        let clone = Arc::clone(&value);
        let thread = thread::spawn(move || {
            let _ = producer.put(clone);
        });
        drop(consumer);
        thread.join().unwrap();
        assert_eq!(Arc::strong_count(&value), 1);
    });
}

#[test]
fn words_are_read_as_they_were_at_one_moment() {
    model(|| {
        let (mut writer, words) = SeqLock::new([0, 0]);
        let thread = thread::spawn(move || {
            writer.write([1, 10]);
            writer.write([2, 20]);
        });
        let mut newest = 0;
        for _ in 0..2 {
            if let Some([a, b]) = words.read() {
                assert!(b == 10 * a && a >= newest);
                newest = a;
            }
        }
        thread.join().unwrap();
        assert_eq!(words.read(), Some([2, 20]));
    });
}

#[test]
fn nobody_sleeps_while_a_queue_is_filled() {
    model(|| {
        let shared = Arc::new((Bell::new(), AtomicUsize::new(0)));
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let (bell, queue) = &*other;
            queue.store(1, Ordering::Relaxed);
            bell.ring()
        });
        let (bell, queue) = &*shared;
        bell.lie_down();
        let sleeps = queue.load(Ordering::Relaxed) == 0;
        let called = thread.join().unwrap();
        assert!(!sleeps || called, "asleep, the queue filled, and not called");
    });
}

#[test]
fn who_rings_early_rings_properly_later() {
    model(|| {
        let shared = Arc::new((Bell::new(), AtomicUsize::new(0)));
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let (bell, queue) = &*other;
            queue.store(1, Ordering::Relaxed);
            let early = bell.ring_early();
            early | bell.ring()
        });
        let (bell, queue) = &*shared;
        bell.lie_down();
        let sleeps = queue.load(Ordering::Relaxed) == 0;
        let called = thread.join().unwrap();
        assert!(!sleeps || called, "asleep, the queue filled, and not called");
    });
}

/// A value whose reads and whose end loom watches: it panics unless every read comes before the end.
struct Watched {
    value: AtomicUsize,
    alive: PlainArc<PlainUsize>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.value.with_mut(|value| *value = usize::MAX);
        self.alive.fetch_sub(1, PLAIN);
    }
}

#[derive(Clone)]
struct Maker(PlainArc<PlainUsize>);

impl Maker {
    fn new() -> Maker {
        Maker(PlainArc::new(PlainUsize::new(0)))
    }

    fn make(&self, value: usize) -> Box<Watched> {
        self.0.fetch_add(1, PLAIN);
        Box::new(Watched {
            value: AtomicUsize::new(value),
            alive: PlainArc::clone(&self.0),
        })
    }

    fn alive(&self) -> usize {
        self.0.load(PLAIN)
    }
}

impl Watched {
    fn value(&self) -> usize {
        self.value.load(Ordering::Relaxed)
    }
}

#[test]
fn nothing_is_freed_while_a_reader_holds_it() {
    model(|| {
        let maker = Maker::new();
        let (mut domain, mut readers) = Domain::new(1);
        let (mut publisher, published) = publish(&domain, maker.make(1));
        let mut reader = readers.remove(0);
        let thread = thread::spawn(move || {
            let mut newest = 0;
            reader.resume();
            for _ in 0..2 {
                let value = published.get(&reader);
                let seen = value.value();
                assert!(seen >= newest && seen < 10, "old after new, or freed");
                newest = seen;
                assert_eq!(value.value(), seen, "freed while held");
                reader.quiescent();
            }
            reader.park();
        });
        publisher.replace(&mut domain, maker.make(2));
        publisher.collect(&domain);
        publisher.replace(&mut domain, maker.make(3));
        publisher.collect(&domain);
        thread.join().unwrap();
        assert_eq!(publisher.collect(&domain), 0, "the only reader is parked");
        assert_eq!(maker.alive(), 1);
        drop(publisher);
        assert_eq!(maker.alive(), 0);
    });
}

#[test]
fn a_reader_that_comes_back_sees_what_was_published_while_it_was_away() {
    model(|| {
        let maker = Maker::new();
        let (mut domain, mut readers) = Domain::new(1);
        let (mut publisher, published) = publish(&domain, maker.make(1));
        let mut reader = readers.remove(0);
        let thread = thread::spawn(move || {
            for _ in 0..2 {
                reader.resume();
                assert!(published.get(&reader).value() < 10, "freed");
                reader.park();
            }
        });
        publisher.replace(&mut domain, maker.make(2));
        publisher.collect(&domain);
        thread.join().unwrap();
    });
}

/// Memory by words, as loom has it.
#[derive(Clone)]
struct Memory(Arc<Vec<loom::sync::atomic::AtomicU64>>);

impl Memory {
    fn new() -> Memory {
        Memory(Arc::new(
            (0..5).map(|_| loom::sync::atomic::AtomicU64::new(0)).collect(),
        ))
    }
}

impl Words for Memory {
    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.0[at / 8].load(order)
    }
}

impl WordsMut for Memory {
    fn store(&self, at: usize, value: u64, order: Ordering) {
        self.0[at / 8].store(value, order);
    }
}

const SHARED: Layout = Layout {
    tail: 0,
    head: 0,
    slots: 8,
    count: 2,
};

#[test]
fn a_shared_ring_hands_over_every_record_once_and_whole() {
    model(|| {
        let (a, b) = (Memory::new(), Memory::new());
        let mut sender = RingSender::<_, _, 2>::new(a.clone(), b.clone(), SHARED);
        let mut receiver = RingReceiver::<_, _, 2>::new(b, a, SHARED);
        let thread = thread::spawn(move || {
            (1..4)
                .filter(|n| sender.send([*n, 10 * n]).is_some())
                .collect::<Vec<_>>()
        });
        let mut taken = Vec::new();
        for _ in 0..2 {
            taken.extend(receiver.receive());
        }
        let sent = thread.join().unwrap();
        while let Some(record) = receiver.receive() {
            taken.push(record);
        }
        assert_eq!(taken, sent.iter().map(|n| [*n, 10 * n]).collect::<Vec<_>>());
        assert_eq!(receiver.nonsense(), 0);
    });
}

/// The receiver looks once more before it sleeps; either that finds the record, or the sender is told to wake it.
#[test]
fn a_sender_of_a_shared_ring_knows_whom_to_wake() {
    model(|| {
        let (a, b) = (Memory::new(), Memory::new());
        let mut sender = RingSender::<_, _, 2>::new(a.clone(), b.clone(), SHARED);
        let mut receiver = RingReceiver::<_, _, 2>::new(b, a, SHARED);
        assert_eq!(sender.send([1, 1]), Some(true));
        let thread = thread::spawn(move || sender.send([2, 2]).unwrap());
        let mut taken = 0;
        // As long as there is something it looks again.
        while receiver.receive().is_some() {
            taken += 1;
        }
        let told = thread.join().unwrap();
        assert!(taken == 2 || told, "a record lies there, and nobody comes for it");
    });
}
