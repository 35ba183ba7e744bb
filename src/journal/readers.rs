//! The terminal and the log file: each a thread, since either may block for as long as it likes.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::shared::{ReaderId, Shared};
use super::spool::Reader;
use crate::outlet::{left_out, write_all};

/// Shows the output as it comes. A terminal that has gone away (a closed pipe, a lost connection)
/// is no reason to end the run.
pub(super) fn terminal(
    shared: Arc<Shared>,
    reader: Reader,
    stdout: File,
) -> io::Result<oneshot::Receiver<()>> {
    let id = shared.add_reader(true);
    in_a_thread("terminal", move || {
        if let Err(error) = follow(&shared, id, reader, stdout) {
            tracing::debug!(%error, "standard output is gone");
        }
    })
}

/// Writes the output to the log file; says once if that fails.
pub(super) fn log_file(
    shared: Arc<Shared>,
    reader: Reader,
    path: PathBuf,
    file: File,
) -> io::Result<oneshot::Receiver<()>> {
    let id = shared.add_reader(false);
    in_a_thread("log-file", move || {
        if let Err(error) = follow(&shared, id, reader, file) {
            shared.say(&format!(
                "Cannot write the log file {}: {error}. The rest of the output is not in it",
                path.display()
            ));
        }
    })
}

fn in_a_thread(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<oneshot::Receiver<()>> {
    let (tell_done, done) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            work();
            let _ = tell_done.send(());
        })?;
    Ok(done)
}

fn follow(shared: &Shared, id: ReaderId, mut reader: Reader, mut sink: File) -> io::Result<()> {
    let mut read_on = || loop {
        let view = shared.wait_for_more(id, reader.offset());
        loop {
            let before = reader.offset();
            let record = reader.next(view.end);
            if let Some((bytes, resume)) = shared.was_left_behind(id, before) {
                reader.skip_to(resume);
                write_all(&mut sink, left_out(bytes).as_bytes())?;
                break;
            }
            match record? {
                Some(record) => write_all(&mut sink, record.bytes)?,
                None if view.closed => return Ok(()),
                None => break,
            }
        }
    };
    let result = read_on();
    shared.reader_is_gone(id);
    result
}
