//! Parses server-sent events (WHATWG HTML, "Server-sent events", §9.2.6).

use std::collections::VecDeque;

/// The longest message that is read, bytes. An event's body of 256 KiB fits many times, however it
/// is escaped.
const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The type; `message` if none was given.
    pub event: String,
    /// The data lines, separated by `\n`.
    pub data: String,
    /// The last `id` of the stream, with this message or before; empty if there was none.
    pub id: String,
}

/// A message is longer than 8 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

/// A parser that takes bytes and returns messages.
#[derive(Default)]
pub struct Parser {
    line: Vec<u8>,
    /// Whether the last byte was a carriage return; a line feed after it belongs to the same line
    /// end.
    after_return: bool,
    /// Whether the first line has ended.
    begun: bool,
    event: String,
    data: String,
    id: String,
    ready: VecDeque<Message>,
}

impl Parser {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// A message is too long.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        for byte in bytes {
            let after_return = std::mem::take(&mut self.after_return);
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    self.after_return = *byte == b'\r';
                    self.end_line();
                }
                other => self.line.push(*other),
            }
            if self.line.len() + self.data.len() > MESSAGE_BYTES_MAX {
                return Err(TooLong);
            }
        }
        Ok(())
    }

    /// The next complete message; `None` if more bytes are needed.
    pub fn next(&mut self) -> Option<Message> {
        self.ready.pop_front()
    }

    fn end_line(&mut self) {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.begun, true) && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        if line.is_empty() {
            return self.dispatch();
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            // Comments, which have no name, `retry` and unknown names are ignored.
            _ => {}
        }
    }

    fn dispatch(&mut self) {
        let (event, mut data) = (
            std::mem::take(&mut self.event),
            std::mem::take(&mut self.data),
        );
        if data.pop().is_none() {
            return;
        }
        self.ready.push_back(Message {
            event: if event.is_empty() {
                "message".to_owned()
            } else {
                event
            },
            data,
            id: self.id.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: &str, data: &str, id: &str) -> Message {
        Message {
            event: event.into(),
            data: data.into(),
            id: id.into(),
        }
    }

    fn read(parts: &[&[u8]]) -> Vec<Message> {
        let mut parser = Parser::default();
        for part in parts {
            parser.push(part).unwrap();
        }
        std::iter::from_fn(|| parser.next()).collect()
    }

    #[test]
    fn every_end_of_line_is_one_wherever_the_bytes_are_cut() {
        let wanted = [message("a", "1\n2", "x"), message("message", "3", "x")];
        for end in ["\n", "\r\n", "\r"] {
            let text = [
                ": comment",
                "id: x",
                "event: a",
                "data: 1",
                "data:2",
                "",
                "data: 3",
                "",
                "",
            ]
            .join(end);
            assert_eq!(read(&[text.as_bytes()]), wanted, "{end:?}");
            let single: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(read(&single), wanted, "{end:?} byte by byte");
            for at in 0..text.len() {
                let (a, b) = text.as_bytes().split_at(at);
                assert_eq!(read(&[a, b]), wanted, "{end:?} cut at {at}");
            }
        }
    }

    #[test]
    fn the_examples_of_the_standard_are_read_as_it_says() {
        let stocks = "data: YHOO\ndata: +2\ndata: 10\n\n";
        assert_eq!(
            read(&[stocks.as_bytes()]),
            [message("message", "YHOO\n+2\n10", "")]
        );
        let four = ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        let wanted = [
            message("message", "first event", "1"),
            message("message", "second event", ""),
            message("message", " third event", ""),
        ];
        assert_eq!(read(&[four.as_bytes()]), wanted);
        let odd = "data\n\ndata\ndata\n\ndata:";
        let wanted = [message("message", "", ""), message("message", "\n", "")];
        assert_eq!(read(&[odd.as_bytes()]), wanted);
    }

    #[test]
    fn what_has_no_data_is_no_message_but_its_id_counts() {
        let text = "event: a\nid: 7\n\nretry: 10\nnonsense\ndata: x\n\n";
        assert_eq!(read(&[text.as_bytes()]), [message("message", "x", "7")]);
        let text = "id: 7\nid: a\0b\ndata: x\n\n";
        assert_eq!(read(&[text.as_bytes()]), [message("message", "x", "7")]);
    }

    #[test]
    fn only_the_first_byte_order_mark_is_dropped() {
        let text = "\u{feff}data: a\n\n\u{feff}data: b\n\ndata: ü\n\n";
        let wanted = [message("message", "a", ""), message("message", "ü", "")];
        assert_eq!(read(&[text.as_bytes()]), wanted);
    }

    #[test]
    fn what_never_ends_is_not_kept() {
        let mut parser = Parser::default();
        let line = vec![b'x'; 64 * 1024];
        let refused = (0..200).find_map(|_| parser.push(&line).err());
        assert_eq!(refused, Some(TooLong));
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &line, b"\n"].concat();
        let refused = (0..200).find_map(|_| parser.push(&line).err());
        assert_eq!(refused, Some(TooLong));
    }
}
