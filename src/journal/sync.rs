//! Sending what earlier runs left: journals of agents that were killed, or whose server was away to
//! the end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::shared::Shared;
use super::spool::{self, About};
use super::{Amount, Receipt, end_of, uploader};
use crate::api::Session;

/// What became of one journal.
#[derive(Debug)]
pub struct Sent {
    pub path: PathBuf,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    /// The server has decided on all of it, and it is removed.
    Done { task: String, receipt: Receipt },
    /// There was nothing in it that a server should get; it is removed.
    Nothing,
    /// It is for another server.
    OtherServer { server: String },
    /// It cannot be read.
    Unreadable { cause: String },
}

/// Which journals to send.
#[derive(Debug, Clone, Copy)]
pub enum Whose<'a> {
    /// Those of this machine. A lock that an agent on another machine holds may not be seen here.
    Machine(&'a str),
    All,
}

/// Sends the journals in `dir` that nobody writes or sends, one after the other, and tells what became
/// of each. It waits for a server that is away: abandon it to stop; what was sent by then is
/// recorded. An agent that runs keeps its journal locked, and so does whoever sends one.
pub async fn send_left(
    dir: &Path,
    whose: Whose<'_>,
    session: &Arc<Session>,
    mut tell: impl FnMut(Sent),
) -> io::Result<()> {
    let machine = match whose {
        Whose::Machine(machine) => Some(machine),
        Whose::All => None,
    };
    let paths = match spool::list(dir, machine) {
        Ok(paths) => paths,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for path in paths {
        let what = match spool::open_left(&path) {
            Ok(None) => continue,
            Ok(Some(left)) => send_one(left, path.clone(), session).await,
            Err(error) => What::Unreadable {
                cause: error.to_string(),
            },
        };
        tell(Sent { path, what });
    }
    Ok(())
}

async fn send_one(left: spool::Left, path: PathBuf, session: &Arc<Session>) -> What {
    if let Some(About { server, .. }) = &left.about
        && server != session.host()
    {
        return What::OtherServer {
            server: server.clone(),
        };
    }
    let (shared, about) = Shared::of_left(left, path);
    let shared = Arc::new(shared);
    let Some(about) = about else {
        shared.abandon();
        end_of(&shared);
        return What::Nothing;
    };
    let upload = uploader::Upload {
        session: session.clone(),
        task: about.task.clone(),
        worker: about.worker,
        mark: String::new(),
    };
    uploader::run(shared.clone(), upload, about.fold).await;
    match end_of(&shared) {
        receipt if receipt.spool.is_some() => What::Unreadable {
            cause: "its end could not be read".into(),
        },
        receipt if receipt.wanted == Amount::default() => What::Nothing,
        receipt => What::Done {
            task: about.task,
            receipt,
        },
    }
}
