//! The waker between threads: no call is lost, and a late one does not keep the sleeper awake.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use patronus_engine::channel::Waker;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Sleeps at most `millis`; true if the descriptor was readable.
fn sleep(waker: &Waker, millis: i64) -> bool {
    let timeout = Timespec {
        tv_sec: millis / 1000,
        tv_nsec: millis % 1000 * 1_000_000,
    };
    let mut fds = [PollFd::from_borrowed_fd(waker.as_fd(), PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).unwrap();
    !fds[0].revents().is_empty()
}

#[test]
fn who_announced_sleep_is_woken() {
    let waker = Waker::new().unwrap();
    waker.announce_sleep();
    waker.wake();
    assert!(sleep(&waker, 0));
    waker.awake(true);
    waker.announce_sleep();
    assert!(!sleep(&waker, 0), "one call, one waking");
    waker.awake(false);
}

#[test]
fn who_is_awake_is_not_called() {
    let waker = Waker::new().unwrap();
    waker.wake();
    assert!(!sleep(&waker, 0));
    waker.announce_sleep();
    waker.awake(false);
    waker.wake();
    assert!(!sleep(&waker, 0));
}

#[test]
fn many_calls_are_one_system_call() {
    let waker = Waker::new().unwrap();
    waker.announce_sleep();
    waker.wake();
    // Whoever comes later sees that somebody else has called.
    assert!(sleep(&waker, 0));
    rustix::io::read(waker.as_fd(), &mut [0; 8]).unwrap();
    waker.wake();
    assert!(!sleep(&waker, 0));
}

/// A caller that was interrupted between seeing the announcement and calling. The sleeper was up for another reason meanwhile.
#[test]
fn a_late_call_ends_one_sleep_and_no_more() {
    let waker = Waker::new().unwrap();
    waker.announce_sleep();
    waker.awake(false);
    rustix::io::write(waker.as_fd(), &1u64.to_ne_bytes()).unwrap();

    waker.announce_sleep();
    let called = sleep(&waker, 0);
    assert!(called);
    waker.awake(called);
    for _ in 0..3 {
        waker.announce_sleep();
        let called = sleep(&waker, 0);
        assert!(!called, "a sleep that lasts");
        waker.awake(called);
    }
}

/// One sleeper, two callers, and pauses of every length: what is put into the queue is always seen.
#[test]
fn no_wake_up_is_lost() {
    const CALLERS: u64 = 2;
    const EACH: u64 = 40_000;
    let waker = Arc::new(Waker::new().unwrap());
    let queue = Arc::new(ArrayQueue::new(64));
    let taken = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (waker, queue, taken) = (Arc::clone(&waker), Arc::clone(&queue), Arc::clone(&taken));
            std::thread::spawn(move || {
                for n in 0..EACH {
                    while queue.push(n).is_err() {
                        std::thread::yield_now();
                    }
                    waker.wake();
                    // Now and then, let it fall asleep.
                    if n % 64 == caller {
                        while taken.load(Ordering::Relaxed) < n {
                            std::thread::yield_now();
                        }
                    }
                    for _ in 0..n % 97 {
                        std::hint::spin_loop();
                    }
                }
            })
        })
        .collect();

    let began = Instant::now();
    let mut slept = 0u64;
    while taken.load(Ordering::Relaxed) < CALLERS * EACH {
        assert!(began.elapsed() < Duration::from_secs(60), "took too long");
        while queue.pop().is_some() {
            taken.fetch_add(1, Ordering::Relaxed);
        }
        if taken.load(Ordering::Relaxed) == CALLERS * EACH {
            break;
        }
        waker.announce_sleep();
        let mut called = false;
        if queue.is_empty() {
            slept += 1;
            called = sleep(&waker, 10_000);
            assert!(
                called || queue.is_empty(),
                "asleep for ten seconds beside a full queue"
            );
        }
        waker.awake(called);
    }
    callers.into_iter().for_each(|c| c.join().unwrap());
    assert!(slept > 0, "it did sleep");
}
