use std::collections::BTreeMap;
use std::process::ExitCode;

use clearml_agent::cli::{Cli, Command};
use clearml_agent::mask::Mask;
use clearml_agent::process::guard;
use clearml_agent::{cache, execute, logging, outlet, server, sync};

fn main() -> ExitCode {
    let cli = Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit());
    if let Command::Guard { run } = &cli.command {
        return match guard::stand(run) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    // Grows with what is read: the environment and the configuration.
    let mask = Mask::default();
    logging::start(cli.global.debug, &mask);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("clearml-agent: cannot start: {error}");
            return ExitCode::from(execute::outcome::exit::AGENT);
        }
    };
    let ended = runtime.block_on(async {
        match cli.command {
            Command::Execute(args) => {
                Ok(execute::run::execute(*args, cli.global, environment(), &mask).await)
            }
            Command::Sync(args) => Ok(sync::sync(args, cli.global, environment(), &mask).await),
            Command::Cache(args) => Ok(cache::cache(&args, &cli.global, &environment())),
            Command::Guard { .. } => Ok(0),
            Command::Server(args) => server::serve(args).await.map(|()| 0),
            Command::Demo(args) => server::demo::run(args, cli.global.debug, environment()).await,
        }
    });
    // What still runs in the background (a call nobody waits for) must not hold up the exit.
    runtime.shutdown_background();
    let code = match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            outlet::complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    };
    outlet::finish();
    code
}

/// The environment, but for variables that are not text: neither settings nor Python scripts can
/// use such.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}
