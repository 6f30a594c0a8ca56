//! The same types on real threads and against simple models.
#![cfg(not(loom))]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use patronus_sync::{Domain, SeqLock, publish, ring};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    Drain { max: usize, taken: usize },
    Leak(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..12usize).prop_map(Step::Push),
        (0..12usize, 0..12usize).prop_map(|(max, taken)| Step::Drain { max, taken }),
        (0..4usize).prop_map(Step::Leak),
    ]
}

#[test]
fn what_is_put_in_is_seen_when_it_is_published() {
    let (mut producer, mut consumer) = ring::<usize>(2);
    assert_eq!(
        (producer.put(0), producer.put(1), producer.put(2)),
        (Ok(()), Ok(()), Err(2))
    );
    assert_eq!(consumer.pop(), None);
    assert_eq!((producer.publish(), producer.publish()), (2, 0));
    assert_eq!(consumer.drain(3).collect::<Vec<_>>(), [0, 1]);
    let _ = producer.put(3);
    drop(producer);
    assert_eq!(
        consumer.pop(),
        Some(3),
        "the last word of a producer that is gone"
    );
}

proptest! {
    #[test]
    fn a_ring_is_a_bounded_queue(capacity in 1..20usize, steps in prop::collection::vec(step(), 0..200)) {
        let (mut producer, mut consumer) = ring::<Arc<usize>>(capacity);
        prop_assert_eq!(producer.capacity(), capacity.next_power_of_two());
        let mut model = VecDeque::new();
        // What a leaked iterator took: the producer has that room later.
        let mut withheld = 0;
        let mut made = Vec::new();
        for step in steps {
            match step {
                Step::Push(count) => {
                    let values: Vec<_> = (0..count).map(|n| Arc::new(made.len() + n)).collect();
                    made.extend(values.iter().cloned());
                    let mut values = values.into_iter();
                    let room = producer.capacity() - model.len() - withheld;
                    prop_assert_eq!(producer.push_some(&mut values), count.min(room));
                    prop_assert_eq!(values.len(), count - count.min(room));
                    let first = made.len() - count;
                    model.extend(first..first + count.min(room));
                }
                Step::Drain { max, taken } => {
                    let there = model.len();
                    let drain = consumer.drain(max);
                    prop_assert_eq!(drain.len(), max.min(there));
                    for value in drain.take(taken) {
                        prop_assert_eq!(Some(*value), model.pop_front());
                    }
                    let moved = there - model.len();
                    prop_assert_eq!(moved, taken.min(max).min(there));
                    if moved > 0 {
                        withheld = 0;
                    }
                }
                Step::Leak(taken) => {
                    let mut drain = consumer.drain(taken);
                    for value in drain.by_ref() {
                        prop_assert_eq!(Some(*value), model.pop_front());
                        withheld += 1;
                    }
                    // A leak is safe code, and must not give a value out twice.
                    #[allow(clippy::disallowed_methods)]
                    std::mem::forget(drain);
                }
            }
        }
        drop(producer);
        drop(consumer);
        prop_assert!(made.iter().all(|value| Arc::strong_count(value) == 1), "each dropped once");
    }
}

#[test]
fn a_ring_moves_a_million_values_between_threads_in_order() {
    const VALUES: usize = 1_000_000;
    let (mut producer, mut consumer) = ring::<usize>(256);
    let thread = thread::spawn(move || {
        let mut values = 0..VALUES;
        while !values.is_empty() {
            let end = values.end.min(values.start + 64);
            let mut burst = values.start..end;
            producer.push_some(&mut burst);
            values.start = burst.start;
            thread::yield_now();
        }
    });
    let mut next = 0;
    while next < VALUES {
        for value in consumer.drain(64) {
            assert_eq!(value, next);
            next += 1;
        }
        thread::yield_now();
    }
    thread.join().expect("producer");
    assert_eq!(consumer.pop(), None);
}

#[test]
fn words_are_never_torn() {
    let (mut writer, words) = SeqLock::new([0; 4]);
    let thread = thread::spawn(move || (1..200_000).for_each(|n| writer.write([n; 4])));
    let mut newest = 0;
    while !thread.is_finished() {
        if let Some(copy) = words.read() {
            assert!(copy.iter().all(|word| *word == copy[0]) && copy[0] >= newest);
            newest = copy[0];
        }
    }
    assert_eq!(words.read(), Some([199_999; 4]));
}

/// Says that it is gone.
struct Counted(Arc<AtomicUsize>, usize);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_value_is_freed_when_the_last_reader_has_let_go() {
    let freed = Arc::new(AtomicUsize::new(0));
    let value = |n| Box::new(Counted(Arc::clone(&freed), n));
    let (mut domain, mut readers) = Domain::new(2);
    let (mut publisher, published) = publish(&domain, value(0));
    readers[0].resume();
    readers[1].resume();
    assert_eq!(published.get(&readers[0]).1, 0);
    publisher.replace(&mut domain, value(1));
    assert_eq!(publisher.collect(&domain), 1);
    readers[0].quiescent();
    assert_eq!(published.get(&readers[0]).1, 1);
    assert_eq!(
        (publisher.collect(&domain), freed.load(Ordering::Relaxed)),
        (1, 0),
        "the other one"
    );
    readers[1].park();
    assert_eq!(
        (publisher.collect(&domain), freed.load(Ordering::Relaxed)),
        (0, 1)
    );
    publisher.replace(&mut domain, value(2));
    publisher.replace(&mut domain, value(3));
    assert_eq!(publisher.collect(&domain), 2);
    drop(readers);
    assert_eq!(
        (publisher.collect(&domain), freed.load(Ordering::Relaxed)),
        (0, 3),
        "a reader that is gone"
    );
    drop(publisher);
    assert_eq!(
        freed.load(Ordering::Relaxed),
        3,
        "the present one, while somebody may look"
    );
    drop(published);
    assert_eq!(freed.load(Ordering::Relaxed), 4);
}

#[test]
#[should_panic(expected = "a parked reader resumes first")]
fn a_parked_reader_is_not_quiescent() {
    let (_domain, mut readers) = Domain::new(1);
    readers[0].quiescent();
}

#[test]
fn a_value_may_be_held_while_it_is_replaced() {
    let (mut domain, mut readers) = Domain::new(1);
    let (mut publisher, published) = publish(&domain, Box::new(1));
    readers[0].resume();
    let held = published.get(&readers[0]);
    publisher.replace(&mut domain, Box::new(2));
    assert_eq!((publisher.collect(&domain), *held), (1, 1));
    readers[0].quiescent();
    assert_eq!((publisher.collect(&domain), *published.get(&readers[0])), (0, 2));
}

#[test]
#[should_panic(expected = "a reader of this domain")]
fn a_parked_reader_sees_nothing() {
    let (domain, readers) = Domain::new(1);
    let (_publisher, published) = publish(&domain, Box::new(1));
    published.get(&readers[0]);
}

#[test]
#[should_panic(expected = "a reader of this domain")]
fn another_domains_reader_sees_nothing() {
    let (domain, _) = Domain::new(1);
    let (_publisher, published) = publish(&domain, Box::new(1));
    let (_other, mut readers) = Domain::new(1);
    readers[0].resume();
    published.get(&readers[0]);
}
