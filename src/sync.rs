//! `clearml-agent sync`: sends what earlier runs could not, and tells how they ended.

use std::io::Write as _;
use std::sync::Arc;

use crate::api::tasks::FinalStatus;
use crate::api::{ApiError, Session};
use crate::cli::{GlobalArgs, SyncArgs};
use crate::config::{self, ConfigError, Lookup, Variables};
use crate::execute::outcome::exit;
use crate::journal::sync::{What, Whose, send_left};
use crate::mask::Mask;
use crate::outlet;

#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("there is no folder of journals: HOME is not set, and neither is `agent.journal.path`")]
    NoFolder,
    #[error(transparent)]
    Login(#[from] ApiError),
    #[error("cannot read the folder of journals {dir}: {cause}")]
    Folder { dir: String, cause: std::io::Error },
}

impl SyncError {
    fn exit_code(&self) -> u8 {
        match self {
            SyncError::Config(_) | SyncError::NoFolder => exit::CONFIG,
            SyncError::Login(error) => exit::for_api(error),
            SyncError::Folder { .. } => exit::NOT_FOUND,
        }
    }
}

/// Part of a line: what the task's status was set to.
pub fn status_words(status: Option<FinalStatus>) -> String {
    status.map_or_else(String::new, |status| {
        format!("; its status is set to {status}")
    })
}

/// To standard output; one that is gone (`| head`) does not keep the rest from being sent.
macro_rules! say {
    ($($words:tt)*) => {
        let _ = writeln!(std::io::stdout(), $($words)*);
    };
}

/// Gives the exit code: 0 where nothing is left.
pub async fn sync(args: SyncArgs, global: GlobalArgs, env: Variables, mask: &Mask) -> u8 {
    match attempt(&args, &global, env, mask).await {
        Ok(0) => 0,
        Ok(_) => exit::AGENT,
        Err(error) => {
            outlet::complain(format_args!("{}", mask.mask(&error.to_string())));
            error.exit_code()
        }
    }
}

/// Gives how many journals are left.
async fn attempt(
    args: &SyncArgs,
    global: &GlobalArgs,
    env: Variables,
    mask: &Mask,
) -> Result<usize, SyncError> {
    let home = env.get("HOME").filter(|h| !h.is_empty());
    let config = config::load(&Lookup {
        config_file: global.config_file.as_deref(),
        env: &env,
        home: home.map(|home| std::path::Path::new(home.as_str())),
    })?;
    let mut secrets = Ok(());
    mask.extend(|known| secrets = config.secrets_into(known));
    secrets?;
    let dir = args.dir.clone();
    let dir = dir
        .or_else(|| config.path("agent.journal.path"))
        .ok_or(SyncError::NoFolder)?;
    if args.dir.is_some() && !dir.is_dir() {
        return Err(SyncError::Folder {
            dir: dir.display().to_string(),
            cause: std::io::ErrorKind::NotFound.into(),
        });
    }
    let session = Arc::new(Session::login(&config.endpoint(&config.worker_id())?).await?);
    let (mut sent, mut left) = (0, 0);
    let tell = |one: crate::journal::sync::Sent| {
        let path = one.path.display();
        match one.what {
            What::Done {
                task,
                receipt,
                status,
            } => {
                sent += 1;
                say!("task {task}: {}{}", receipt.words(), status_words(status));
            }
            What::Nothing => {}
            What::OtherServer { server } => {
                left += 1;
                say!(
                    "{path}: left as it is, it is for {server}, and the configuration names {}",
                    session.host()
                );
            }
            What::Left { cause } => {
                left += 1;
                say!("{path}: left as it is: {cause}");
            }
        }
    };
    let whose = match args.all_machines {
        true => Whose::All,
        false => Whose::Machine(config.machine()),
    };
    send_left(&dir, whose, &session, tell)
        .await
        .map_err(|cause| SyncError::Folder {
            dir: dir.display().to_string(),
            cause,
        })?;
    if (sent, left) == (0, 0) {
        let whose = match args.all_machines {
            true => "",
            false => " (of this machine; --all-machines looks at all)",
        };
        say!("nothing is left to send in {}{whose}", dir.display());
    }
    Ok(left)
}
