//! Shows the progress of a long command on standard error: a bar on a terminal, a line for each
//! tenth elsewhere.

use std::io::{self, IsTerminal as _, Write as _};

const WIDTH: u64 = 30;

/// The progress display of one command.
pub struct Progress {
    total: u64,
    done: u64,
    /// The last tenth that was shown.
    tenth: u64,
    moving: bool,
}

impl Progress {
    /// Shows that nothing of `total` is done yet.
    #[must_use]
    pub fn new(total: u64) -> Self {
        let progress = Self {
            total,
            done: 0,
            tenth: 0,
            moving: io::stderr().is_terminal(),
        };
        progress.draw();
        progress
    }

    /// Adds `by` to what is done. The sum may exceed the first total.
    pub fn advance(&mut self, by: u64) {
        self.done += by;
        self.total = self.total.max(self.done);
        let tenth = (self.done * 10).checked_div(self.total).unwrap_or(10);
        if self.moving {
            self.draw();
        } else if tenth > self.tenth {
            eprintln!("{} of {}", self.done, self.total);
        }
        self.tenth = tenth;
    }

    /// Removes the bar, so that a line can be written. [`Progress::advance`] draws it again.
    pub fn clear(&self) {
        if self.moving {
            let longest = line(self.total, self.total).len();
            write(&format!("\r{:longest$}\r", ""));
        }
    }

    fn draw(&self) {
        if self.moving && self.total > 0 {
            write(&format!("\r{}", line(self.done, self.total)));
        }
    }
}

/// Writes to standard error. The reader may be gone, so errors are ignored.
fn write(text: &str) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn line(done: u64, total: u64) -> String {
    let full = (done * WIDTH)
        .checked_div(total)
        .unwrap_or(WIDTH)
        .min(WIDTH);
    let bar: String = (0..WIDTH)
        .map(|at| if at < full { '#' } else { '-' })
        .collect();
    format!("[{bar}] {done} of {total}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_full_as_the_work_is_done() {
        assert_eq!(line(0, 3), format!("[{}] 0 of 3", "-".repeat(30)));
        assert_eq!(
            line(1, 3),
            format!("[{}{}] 1 of 3", "#".repeat(10), "-".repeat(20))
        );
        assert_eq!(line(3, 3), format!("[{}] 3 of 3", "#".repeat(30)));
        assert_eq!(line(0, 0), format!("[{}] 0 of 0", "#".repeat(30)));
    }

    #[test]
    fn more_than_was_counted_is_no_fault() {
        let mut progress = Progress::new(1);
        progress.advance(2);
        assert_eq!((progress.done, progress.total), (2, 2));
    }
}
