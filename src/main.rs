//! The entry point: parses the flags, loads the configuration, then serves or reports the problems.
//!
//! Exit codes: 0 success, 1 failure, 64 wrong command line, 78 wrong configuration (sysexits.h).

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use redis_proxy::cli::{self, Cli, Command, Flags};
use redis_proxy::config::{self, Config, Problems, Sources};
use redis_proxy::daemon::health::{self, HealthCheck, Transport};
use redis_proxy::daemon::{Daemon, ExitReason, StartError};
use redis_proxy::server::BindError;
use redis_proxy::telemetry::{self, Telemetry, TracesError};

/// The allocator. A cached read over HTTP allocates about a dozen times.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FAILED: u8 = 1;
const USAGE: u8 = 64;
const CONFIG: u8 = 78;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Some(Command::Man) => finish(print(|out| cli::write_man(out))),
        Some(Command::Completions { shell }) => finish(print(|out| {
            cli::write_completions(shell, out);
            Ok(())
        })),
        command => configured(command, cli.flags),
    }
}

/// Runs the commands that need the configuration.
fn configured(command: Option<Command>, flags: Flags) -> ExitCode {
    let sources = Sources { flags, environment: config::environment() };
    if let Some(Command::Health { live }) = command {
        // A refused reload leaves the daemon healthy, so problems of the file are ignored here.
        let config = sources.load_lenient();
        return finish(health(&config, if live { HealthCheck::Live } else { HealthCheck::Ready }));
    }
    let config = match sources.load() {
        Ok(config) => config,
        Err(problems) => return report_problems(&problems),
    };
    finish(match command {
        Some(Command::Check) => match config.check_exposure() {
            Ok(()) => print_text("The configuration is right.\n"),
            Err(problems) => return report_problems(&problems),
        },
        _ if sources.flags.print_config => {
            config.to_toml().map_err(Into::into).and_then(|text| print_text(&text))
        }
        _ => serve(config, sources),
    })
}

fn finish(ended: anyhow::Result<ExitCode>) -> ExitCode {
    ended.unwrap_or_else(|error| print_error(&format!("{error:#}"), exit_code(&error)))
}

fn report_problems(problems: &Problems) -> ExitCode {
    print_error(&problems.to_string(), if problems.has_flag_error() { USAGE } else { CONFIG })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let wrong_file =
        matches!(error.downcast_ref(), Some(StartError::Prepare(_) | StartError::File(_)));
    let unprotected =
        matches!(error.downcast_ref(), Some(StartError::Bind(BindError::UnprotectedListener(_))));
    let wrong_collector = matches!(
        error.downcast_ref(),
        Some(telemetry::StartError::Traces(TracesError::Exporter(_)))
    );
    if wrong_file || unprotected || wrong_collector { CONFIG } else { FAILED }
}

fn print_error(text: &str, code: u8) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    text.lines().for_each(|line| _ = writeln!(stderr, "redis-proxy: {line}"));
    ExitCode::from(code)
}

fn print_text(text: &str) -> anyhow::Result<ExitCode> {
    print(|out| out.write_all(text.as_bytes()))
}

fn print(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    write(&mut text)?;
    io::stdout().write_all(&text).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn health(config: &Config, health_check: HealthCheck) -> anyhow::Result<ExitCode> {
    let is_apart = !config.admin.listen.is_off();
    let listen = if is_apart { &config.admin.listen } else { &config.http.listen };
    let is_in_clear = is_apart || config.http.tls_cert_file.as_os_str().is_empty();
    let transport = if is_in_clear { Transport::Tcp } else { Transport::Tls };
    let (well, answer) = health::check(listen, transport, health_check)
        .with_context(|| format!("no answer from {listen}"))?;
    print_text(&format!("{answer}\n"))?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn serve(config: Config, sources: Sources) -> anyhow::Result<ExitCode> {
    let telemetry = Telemetry::start(&config.telemetry)?;
    let ended = run(config, sources, &telemetry);
    telemetry.flush();
    ended
}

fn run(config: Config, sources: Sources, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let daemon = Daemon::build(config, sources, telemetry.clone());
    let reason = runtime.block_on(async { anyhow::Ok(daemon.await?.run().await) })?;
    // Tasks that still run have had their time.
    runtime.shutdown_background();
    if reason != ExitReason::Forced {
        telemetry.shutdown();
    }
    Ok(match reason {
        ExitReason::Drained => ExitCode::SUCCESS,
        ExitReason::Forced | ExitReason::TaskFailed => ExitCode::from(FAILED),
    })
}
