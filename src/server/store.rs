//! The database: documents by id, events by task, machine figures by worker. One writer at a time,
//! so whatever a call reads and writes in its transaction is one step for all others.

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use redb::backends::InMemoryBackend;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde_json::Value;

use super::document::Document;
use super::refusal::Refusal;

type Table = TableDefinition<'static, &'static str, &'static [u8]>;
/// Task, type of event, then what orders and identifies the event within these.
type EventTable =
    TableDefinition<'static, (&'static str, &'static str, &'static [u8]), &'static [u8]>;
/// Worker and the time of the report in milliseconds.
type StatsTable = TableDefinition<'static, (&'static str, i64), &'static [u8]>;

const EVENTS: EventTable = TableDefinition::new("events");
const STATS: StatsTable = TableDefinition::new("machine_stats");

/// The kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tasks,
    Projects,
    Queues,
    Workers,
    Models,
}

const KINDS: [Kind; 5] = [
    Kind::Tasks,
    Kind::Projects,
    Kind::Queues,
    Kind::Workers,
    Kind::Models,
];

impl Kind {
    fn table(self) -> Table {
        TableDefinition::new(match self {
            Kind::Tasks => "tasks",
            Kind::Projects => "projects",
            Kind::Queues => "queues",
            Kind::Workers => "workers",
            Kind::Models => "models",
        })
    }
}

pub struct Store {
    database: Database,
    /// Tells events of the same millisecond apart, in the order of their arrival.
    sequence: AtomicU64,
}

/// One transaction. Writing through a reading one is an error of the endpoint table.
pub enum Transaction<'s> {
    Reading(ReadTransaction),
    Writing(Box<WriteTransaction>, &'s Store),
}

fn failed(error: impl Into<redb::Error>) -> Refusal {
    Refusal::data_error(error.into())
}

/// Runs `$body` with `$table` open in either kind of transaction.
macro_rules! with_table {
    ($transaction:expr, $definition:expr, |$table:ident| $body:expr) => {
        match $transaction {
            Transaction::Reading(transaction) => {
                let $table = transaction.open_table($definition).map_err(failed)?;
                $body
            }
            Transaction::Writing(transaction, _) => {
                let $table = transaction.open_table($definition).map_err(failed)?;
                $body
            }
        }
    };
}

impl Store {
    /// A database in `file`, or without one in memory.
    pub fn open(file: Option<&Path>) -> Result<Store, redb::Error> {
        let database = match file {
            Some(file) => Database::create(file)?,
            None => Database::builder().create_with_backend(InMemoryBackend::new())?,
        };
        let transaction = database.begin_write()?;
        for kind in KINDS {
            transaction.open_table(kind.table())?;
        }
        transaction.open_table(EVENTS)?;
        transaction.open_table(STATS)?;
        transaction.commit()?;
        // Starts above what an earlier run of the server used.
        let start = jiff::Timestamp::now().as_microsecond();
        Ok(Store {
            database,
            sequence: AtomicU64::new(u64::try_from(start).unwrap_or(0)),
        })
    }

    pub fn read<T>(
        &self,
        step: impl FnOnce(&Transaction<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        step(&Transaction::Reading(
            self.database.begin_read().map_err(failed)?,
        ))
    }

    /// Keeps what `step` wrote if it succeeds, and nothing of it if not. When this returns it is on
    /// disk: a caller who was told that the server has it may forget it.
    pub fn write<T>(
        &self,
        step: impl FnOnce(&Transaction<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let transaction = self.database.begin_write().map_err(failed)?;
        let transaction = Transaction::Writing(Box::new(transaction), self);
        // An early return drops the transaction, which undoes it.
        let result = step(&transaction)?;
        if let Transaction::Writing(transaction, _) = transaction {
            transaction.commit().map_err(failed)?;
        }
        Ok(result)
    }
}

impl Transaction<'_> {
    fn writing(&self) -> Result<(&WriteTransaction, &Store), Refusal> {
        match self {
            Transaction::Writing(transaction, store) => Ok((transaction, store)),
            Transaction::Reading(_) => Err(Refusal::data_error("a reading call tried to write")),
        }
    }

    pub fn get(&self, kind: Kind, id: &str) -> Result<Option<Document>, Refusal> {
        with_table!(self, kind.table(), |table| {
            match table.get(id).map_err(failed)? {
                Some(bytes) => decode(bytes.value()).map(Some),
                None => Ok(None),
            }
        })
    }

    pub fn all(&self, kind: Kind) -> Result<Vec<Document>, Refusal> {
        with_table!(self, kind.table(), |table| {
            let rows = table.iter().map_err(failed)?;
            rows.map(|row| decode(row.map_err(failed)?.1.value()))
                .collect()
        })
    }

    pub fn put(&self, kind: Kind, id: &str, document: &Document) -> Result<(), Refusal> {
        let (transaction, _) = self.writing()?;
        let mut table = transaction.open_table(kind.table()).map_err(failed)?;
        table
            .insert(id, encode(document)?.as_slice())
            .map_err(failed)?;
        Ok(())
    }

    /// Whether there was one.
    pub fn delete(&self, kind: Kind, id: &str) -> Result<bool, Refusal> {
        let (transaction, _) = self.writing()?;
        let mut table = transaction.open_table(kind.table()).map_err(failed)?;
        let removed = table.remove(id).map_err(failed)?;
        Ok(removed.is_some())
    }

    /// A number larger than all given before.
    pub fn next_in_sequence(&self) -> Result<u64, Refusal> {
        let (_, store) = self.writing()?;
        Ok(store.sequence.fetch_add(1, Ordering::Relaxed))
    }

    /// Keeps an event; one with the same key is replaced.
    pub fn put_event(
        &self,
        task: &str,
        kind: &str,
        key: &[u8],
        event: &Document,
    ) -> Result<(), Refusal> {
        let (transaction, _) = self.writing()?;
        let mut table = transaction.open_table(EVENTS).map_err(failed)?;
        table
            .insert((task, kind, key), encode(event)?.as_slice())
            .map_err(failed)?;
        Ok(())
    }

    /// The events of a task and type with a key between `bounds`, in the order of their keys or
    /// the opposite one, as long as `wanted` says so of key and event.
    pub fn events(
        &self,
        (task, kind): (&str, &str),
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        backwards: bool,
        mut wanted: impl FnMut(&[u8], &Document) -> bool,
    ) -> Result<Vec<Document>, Refusal> {
        let low = bounds.0.map(|key| (task, kind, key));
        let high = bounds.1.map(|key| (task, kind, key));
        let low = match low {
            Bound::Unbounded => Bound::Included((task, kind, &[][..])),
            bound => bound,
        };
        // No key is as long or as high as this.
        let end = [0xff_u8; 64];
        let high = match high {
            Bound::Unbounded => Bound::Included((task, kind, &end[..])),
            bound => bound,
        };
        with_table!(self, EVENTS, |table| {
            let mut rows = table
                .range::<(&str, &str, &[u8])>((low, high))
                .map_err(failed)?;
            let mut events = Vec::new();
            while let Some(row) = if backwards {
                rows.next_back()
            } else {
                rows.next()
            } {
                let (key, bytes) = row.map_err(failed)?;
                let event = decode(bytes.value())?;
                if !wanted(key.value().2, &event) {
                    break;
                }
                events.push(event);
            }
            Ok(events)
        })
    }

    /// How many events of this type the task has.
    pub fn count_events(&self, task: &str, kind: &str) -> Result<usize, Refusal> {
        let end = [0xff_u8; 64];
        with_table!(self, EVENTS, |table| {
            let rows = table
                .range::<(&str, &str, &[u8])>((task, kind, &[][..])..=(task, kind, &end[..]))
                .map_err(failed)?;
            Ok(rows.count())
        })
    }

    pub fn delete_events(&self, task: &str) -> Result<(), Refusal> {
        let (transaction, _) = self.writing()?;
        let mut table = transaction.open_table(EVENTS).map_err(failed)?;
        // The first text after `task`: task ids hold no NUL.
        let after = format!("{task}\0");
        table
            .retain_in::<(&str, &str, &[u8]), _>(
                (task, "", &[][..])..(after.as_str(), "", &[][..]),
                |_, _| false,
            )
            .map_err(failed)
    }

    pub fn put_stats(&self, worker: &str, time: i64, stats: &Document) -> Result<(), Refusal> {
        let (transaction, _) = self.writing()?;
        let mut table = transaction.open_table(STATS).map_err(failed)?;
        table
            .insert((worker, time), encode(stats)?.as_slice())
            .map_err(failed)?;
        Ok(())
    }

    /// What `worker` reported between the two times, in order.
    pub fn stats(&self, worker: &str, from: i64, to: i64) -> Result<Vec<(i64, Document)>, Refusal> {
        with_table!(self, STATS, |table| {
            let rows = table
                .range::<(&str, i64)>((worker, from)..=(worker, to))
                .map_err(failed)?;
            rows.map(|row| {
                let (key, bytes) = row.map_err(failed)?;
                Ok((key.value().1, decode(bytes.value())?))
            })
            .collect()
        })
    }

    /// The workers with figures.
    pub fn workers_with_stats(&self) -> Result<Vec<String>, Refusal> {
        with_table!(self, STATS, |table| {
            let mut workers = Vec::<String>::new();
            for row in table.iter().map_err(failed)? {
                let (key, _) = row.map_err(failed)?;
                if workers.last().is_none_or(|last| last != key.value().0) {
                    workers.push(key.value().0.to_owned());
                }
            }
            Ok(workers)
        })
    }

    pub fn forget_stats_before(&self, time: i64) -> Result<(), Refusal> {
        let (transaction, _) = self.writing()?;
        let mut table = transaction.open_table(STATS).map_err(failed)?;
        table.retain(|key, _| key.1 >= time).map_err(failed)
    }
}

fn decode(bytes: &[u8]) -> Result<Document, Refusal> {
    serde_json::from_slice(bytes).map_err(Refusal::data_error)
}

fn encode(document: &Document) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(document).map_err(Refusal::data_error)
}

/// `document` as a value with all of it.
pub fn value(document: Document) -> Value {
    Value::Object(document)
}
