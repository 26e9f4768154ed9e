//! The recent end of a log, kept in memory, so that a device that reconnects soon needs no read.

use std::collections::VecDeque;

use crate::ids::Position;

/// Entries in `(from, position]`, bounded in number and bytes.
#[derive(Debug)]
pub struct Window<E> {
    entries: VecDeque<(Position, usize, E)>,
    from: Position,
    bytes: usize,
    most_entries: usize,
    most_bytes: usize,
}

impl<E: Clone> Window<E> {
    /// An empty window at `position`.
    #[must_use]
    pub fn new(position: Position, most_entries: usize, most_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            from: position,
            bytes: 0,
            most_entries,
            most_bytes,
        }
    }

    /// Takes in the next entry; the oldest leave when the bounds are reached.
    pub fn push(&mut self, position: Position, bytes: usize, entry: E) {
        self.entries.push_back((position, bytes, entry));
        self.bytes += bytes;
        while self.entries.len() > self.most_entries || self.bytes > self.most_bytes {
            let Some((position, bytes, _)) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= bytes;
            self.from = position;
        }
    }

    /// Whether it holds everything after `position`.
    #[must_use]
    pub fn covers(&self, position: Position) -> bool {
        position >= self.from
    }

    /// It holds everything after here.
    #[must_use]
    pub fn from(&self) -> Position {
        self.from
    }

    /// What comes after `position`, in order.
    pub fn after(&self, position: Position) -> impl Iterator<Item = (Position, &E)> {
        let start = self
            .entries
            .partition_point(|(entry, _, _)| *entry <= position);
        self.entries
            .range(start..)
            .map(|(position, _, entry)| (*position, entry))
    }

    /// Forgets everything; begins anew at `position`.
    pub fn reset(&mut self, position: Position) {
        self.entries.clear();
        self.bytes = 0;
        self.from = position;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_honest() {
        let mut window = Window::new(10, 3, 100);
        for position in 11..=14 {
            window.push(position, 10, position);
        }
        assert!(!window.covers(10) && window.covers(11));
        let after: Vec<_> = window.after(12).map(|(position, _)| position).collect();
        assert_eq!(after, [13, 14]);
        window.push(15, 95, 15);
        assert!(!window.covers(13) && window.covers(14));
        window.push(16, 500, 16);
        assert!(!window.covers(15) && window.covers(16));
        window.reset(3);
        assert!(window.covers(3) && window.after(0).next().is_none());
    }
}
