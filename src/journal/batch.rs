//! Text into log events, and events into packets for `events.add_batch`.

use std::collections::VecDeque;

use serde::Serialize;

use super::Amount;

/// The most text of one event: the Python agent's, which the web page copes with.
const MOST_IN_AN_EVENT: usize = 64 * 1024;
/// The most of one request's body.
const MOST_IN_A_PACKET: usize = 1024 * 1024;
/// Text that came later than this after the event's first (ms) makes another event: its time is
/// then shown about right.
const EVENT_SPAN: u64 = 1_000;

/// Text on its way to the server.
#[derive(Debug, Default)]
pub(super) struct Batch {
    events: VecDeque<Event>,
    text_bytes: usize,
    last_time: u64,
    /// Input that came to no text, before there was an event to add it to.
    without_text: Amount,
}

#[derive(Debug)]
struct Event {
    time: u64,
    text: String,
    amount: Amount,
}

/// One event as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub json: Vec<u8>,
    pub amount: Amount,
    pub time: u64,
}

#[derive(Serialize)]
struct LogEvent<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    level: &'static str,
    task: &'a str,
    worker: &'a str,
    msg: &'a str,
    timestamp: u64,
}

impl Batch {
    /// Whose first event comes after `last_time`.
    pub fn after(last_time: u64) -> Self {
        Self {
            last_time,
            ..Self::default()
        }
    }

    /// Adds text that came at `time` and stands for `amount` of the output.
    pub fn add(&mut self, text: &str, time: u64, amount: Amount) {
        if text.is_empty() {
            match self.events.back_mut() {
                Some(event) => event.amount.add(amount),
                None => self.without_text.add(amount),
            }
            return;
        }
        self.text_bytes += text.len();
        if let Some(event) = self.events.back_mut()
            && event.text.len() + text.len() <= MOST_IN_AN_EVENT
            && time < event.time + EVENT_SPAN
        {
            event.text.push_str(text);
            event.amount.add(amount);
            return;
        }
        let mut rest = text;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.floor_char_boundary(MOST_IN_AN_EVENT));
            // The console sorts by time, and equal times have no order.
            self.last_time = time.max(self.last_time + 1);
            self.events.push_back(Event {
                time: self.last_time,
                text: part.to_owned(),
                // With the last part all of it is there.
                amount: if after.is_empty() {
                    amount
                } else {
                    Amount::default()
                },
            });
            rest = after;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether there is enough for a packet.
    pub fn is_full(&self) -> bool {
        self.text_bytes >= MOST_IN_A_PACKET
    }

    /// Input that needs no sending.
    pub fn take_without_text(&mut self) -> Amount {
        std::mem::take(&mut self.without_text)
    }

    /// The next packet: as many events as fit, at least one if there is any.
    /// Each has `mark` before it.
    pub fn take_packet(&mut self, task: &str, worker: &str, mark: &str) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut size = 0;
        while let Some(event) = self.events.front() {
            let marked = (!mark.is_empty()).then(|| format!("{mark}{}", event.text));
            let event_as_sent = LogEvent {
                kind: "log",
                level: "DEBUG",
                task,
                worker,
                msg: marked.as_deref().unwrap_or(&event.text),
                timestamp: event.time,
            };
            // A struct of texts and a number is always JSON.
            let json = serde_json::to_vec(&event_as_sent).unwrap_or_default();
            if !lines.is_empty() && size + json.len() + 1 > MOST_IN_A_PACKET {
                break;
            }
            size += json.len() + 1;
            self.text_bytes -= event.text.len();
            lines.push(Line {
                json,
                amount: event.amount,
                time: event.time,
            });
            self.events.pop_front();
        }
        lines
    }
}

/// The body of a request: one event a line.
pub(super) fn body(lines: &[Line]) -> Vec<u8> {
    let mut body = Vec::with_capacity(lines.iter().map(|l| l.json.len() + 1).sum());
    for line in lines {
        body.extend_from_slice(&line.json);
        body.push(b'\n');
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn one(bytes: usize) -> Amount {
        Amount {
            lines: 1,
            bytes: bytes as u64,
        }
    }

    fn add(batch: &mut Batch, text: &str, time: u64) {
        batch.add(text, time, one(text.len()));
    }

    fn packet(batch: &mut Batch) -> Vec<Value> {
        batch
            .take_packet("t1", "w1", "")
            .iter()
            .map(|line| serde_json::from_slice(&line.json).unwrap())
            .collect()
    }

    #[test]
    fn an_event_is_what_the_server_knows() {
        let mut batch = Batch::default();
        add(&mut batch, "one\n", 1_795_472_759_103);
        add(&mut batch, "two\n", 1_795_472_759_104);
        assert_eq!(
            packet(&mut batch),
            [serde_json::json!({
                "type": "log", "level": "DEBUG", "task": "t1", "worker": "w1",
                "msg": "one\ntwo\n", "timestamp": 1_795_472_759_103_u64,
            })]
        );
        assert!(batch.is_empty());
    }

    #[test]
    fn times_are_unique_and_ascend() {
        let mut batch = Batch::default();
        let big = "x".repeat(MOST_IN_AN_EVENT);
        for (text, time) in [
            (&big[..], 50),
            (&big, 50),
            ("late", 1_050),
            ("back", 2_049),
            ("x", 40),
            ("y", 9_000),
        ] {
            add(&mut batch, text, time);
        }
        let times: Vec<u64> = packet(&mut batch)
            .iter()
            .map(|e| e["timestamp"].as_u64().unwrap())
            .collect();
        assert_eq!(times, [50, 51, 1_050, 9_000]);
    }

    #[test]
    fn lines_are_not_cut_where_they_fit() {
        let mut batch = Batch::default();
        let line = format!("{}\n", "x".repeat(40_000));
        for _ in 0..3 {
            add(&mut batch, &line, 5);
        }
        let texts: Vec<usize> = packet(&mut batch)
            .iter()
            .map(|e| e["msg"].as_str().unwrap().len())
            .collect();
        assert_eq!(texts, [40_001; 3]);
    }

    #[test]
    fn sizes_are_bounded_whatever_comes() {
        let mut batch = Batch::default();
        // As JSON six times as long; and an odd length of three-byte characters.
        let control = "\x01".repeat(MOST_IN_AN_EVENT);
        let wide = "\u{fffd}".repeat(100_001);
        for text in [&control, &control, &wide, &control, &control] {
            add(&mut batch, text, 5);
        }
        let mut all = String::new();
        let mut amount = Amount::default();
        while !batch.is_empty() {
            let lines = batch.take_packet("t1", "w1", "");
            assert!(body(&lines).len() <= MOST_IN_A_PACKET);
            for line in lines {
                let event: Value = serde_json::from_slice(&line.json).unwrap();
                let text = event["msg"].as_str().unwrap();
                assert!(text.len() <= MOST_IN_AN_EVENT);
                all.push_str(text);
                amount.add(line.amount);
            }
        }
        assert_eq!(all, format!("{control}{control}{wide}{control}{control}"));
        assert_eq!(amount.lines, 5);
        assert_eq!(amount.bytes, all.len() as u64);
    }

    #[test]
    fn output_without_text_is_accounted_for() {
        let mut batch = Batch::default();
        batch.add("", 1, one(9));
        assert!(batch.is_empty());
        assert_eq!(batch.take_without_text(), one(9));
        add(&mut batch, "x", 1);
        batch.add("", 2, one(4));
        let lines = batch.take_packet("t", "w", "");
        assert_eq!(lines[0].amount, Amount { lines: 2, bytes: 5 });
    }
}
