//! Which of many things is due first: a binary heap in which a deadline can be changed.

use patronus_crypto::Time;

/// No place in the heap.
const NONE: u32 = u32::MAX;

/// Deadlines of things that are numbers, low ones: there is room for all up to the highest one.
#[derive(Default)]
pub struct Deadlines {
    /// The first one first; each before the two that are at twice its place.
    heap: Vec<(Time, u32)>,
    /// By number: its place in the heap.
    places: Vec<u32>,
}

impl Deadlines {
    /// What is due first.
    pub fn first(&self) -> Option<(Time, u32)> {
        self.heap.first().copied()
    }

    /// Gives a number a deadline, or takes it away. Allocates for numbers that are higher than any before.
    pub fn set(&mut self, number: u32, at: Option<Time>) {
        let index = number as usize;
        if self.places.len() <= index {
            self.places.resize(index + 1, NONE);
            self.heap.reserve(index + 1 - self.heap.len());
        }
        match (self.places[index], at) {
            (NONE, None) => {}
            (NONE, Some(at)) => {
                self.heap.push((at, number));
                self.rise(self.heap.len() - 1);
            }
            (place, Some(at)) => {
                let place = place as usize;
                self.heap[place].0 = at;
                self.rise(place);
                self.sink(self.places[index] as usize);
            }
            (place, None) => self.remove(place as usize),
        }
    }

    fn remove(&mut self, place: usize) {
        let (_, number) = self.heap.swap_remove(place);
        self.places[number as usize] = NONE;
        if place < self.heap.len() {
            self.rise(place);
            let (_, moved) = self.heap[place];
            self.sink(self.places[moved as usize] as usize);
        }
    }

    fn rise(&mut self, mut place: usize) {
        while place > 0 && self.heap[place] < self.heap[(place - 1) / 2] {
            let above = (place - 1) / 2;
            self.heap.swap(place, above);
            self.settle(place);
            place = above;
        }
        self.settle(place);
    }

    fn sink(&mut self, mut place: usize) {
        loop {
            let below = [2 * place + 1, 2 * place + 2];
            let below = below.into_iter().filter(|below| *below < self.heap.len());
            let Some(least) = below.min_by_key(|below| self.heap[*below]) else {
                break;
            };
            if self.heap[place] <= self.heap[least] {
                break;
            }
            self.heap.swap(place, least);
            self.settle(place);
            place = least;
        }
        self.settle(place);
    }

    /// Notes where the number in this place is.
    fn settle(&mut self, place: usize) {
        let (_, number) = self.heap[place];
        self.places[number as usize] = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_is_the_first(steps in prop::collection::vec((0..20u32, prop::option::weighted(0.8, 0..50u64)), 1..200)) {
            let (mut deadlines, mut oracle) = (Deadlines::default(), BTreeMap::new());
            for (number, at) in steps {
                deadlines.set(number, at.map(Time));
                match at {
                    Some(at) => oracle.insert(number, at),
                    None => oracle.remove(&number),
                };
                let first = oracle.iter().map(|(number, at)| (Time(*at), *number)).min();
                prop_assert_eq!(deadlines.first(), first);
            }
            while let Some((at, number)) = deadlines.first() {
                prop_assert_eq!(oracle.remove(&number), Some(at.0));
                deadlines.set(number, None);
            }
            prop_assert!(oracle.is_empty());
        }
    }
}
