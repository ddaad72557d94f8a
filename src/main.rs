//! The entry point: parses the flags, loads the configuration, then serves or reports the problems.
//!
//! Exit codes: 0 success, 1 failure, 64 wrong command line, 78 wrong configuration (sysexits.h).

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use redis_proxy::cli::{self, Command, Flags, Peer};
use redis_proxy::client::{self, Response, Target, Trust};
use redis_proxy::config::{self, Config, Problems, Sources};
#[cfg(feature = "console")]
use redis_proxy::console::{self, Source};
use redis_proxy::daemon::health::{self, HealthCheck};
use redis_proxy::daemon::{Daemon, ExitReason, StartError, return_memory_sooner};
use redis_proxy::daemon::{explain, report};
use redis_proxy::server::BindError;
use redis_proxy::telemetry::hot_keys::path_escape;
use redis_proxy::telemetry::{self, LogFilter, LogFormat, Telemetry};
use tracing::field;

/// The allocator. A cached read over HTTP allocates about a dozen times.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FAILED: u8 = 1;
const USAGE: u8 = 64;
const CONFIG: u8 = 78;

fn main() -> ExitCode {
    // Before anything else frees memory. Otherwise nothing is returned in the first second.
    return_memory_sooner();
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(error) => {
            _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Some(Command::Man { directory: Some(directory), .. }) => finish(
            cli::write_manuals(&directory)
                .with_context(|| format!("cannot write to {}", directory.display()))
                .map(|()| ExitCode::SUCCESS),
        ),
        Some(Command::Man { name, .. }) => manual(name.as_deref()),
        Some(Command::Schema) => finish(schema()),
        Some(Command::Init { file, force }) => init(&file, force, cli.flags),
        Some(Command::Completions { shell }) => finish(print(|out| {
            cli::write_completions(shell, out);
            Ok(())
        })),
        command => configured(command.as_ref(), cli.flags),
    }
}

fn manual(name: Option<&str>) -> ExitCode {
    let mut page = Vec::new();
    match cli::write_manual(name, &mut page) {
        Ok(true) => finish(print(|out| out.write_all(&page))),
        Ok(false) => {
            print_error(&format!("no command is called {}", name.unwrap_or_default()), USAGE)
        }
        Err(error) => finish(Err(error.into())),
    }
}

fn schema() -> anyhow::Result<ExitCode> {
    print_text(&format!("{:#}\n", config::json_schema()))
}

/// Writes the file of `redis-proxy init`. Values of the environment are left out, because they
/// apply without the file.
fn init(file: &Path, force: bool, flags: Flags) -> ExitCode {
    let sources = Sources { flags: Flags { config: None, ..flags }, environment: BTreeMap::new() };
    match config::initial_file(&sources) {
        Err(problems) => report_problems(&problems, LogFormat::Text),
        Ok(text) if file == Path::new("-") => finish(print_text(&text)),
        Ok(text) => finish(
            create(file, &text, force)
                .with_context(|| format!("cannot write {}", file.display()))
                .and_then(|()| print_text(&format!("Written: {}\n", file.display()))),
        ),
    }
}

/// Creates a file that only its owner can read, because it may hold a password.
fn create(file: &Path, text: &str, replace: bool) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(!replace).create(replace).truncate(replace).mode(0o600);
    let file = options.open(file).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => io::Error::other("it exists; expected --force to replace it"),
        _ => error,
    })?;
    (&file).write_all(text.as_bytes())
}

/// Runs the commands that need the configuration.
fn configured(command: Option<&Command>, flags: Flags) -> ExitCode {
    let sources = Sources { flags, environment: config::environment() };
    if let Some(Command::Stat { watch, .. } | Command::Top { watch, .. }) = command {
        let target = queried(&watch.peer, || sources.load_lenient());
        return finish(show(command, target, watch.interval));
    }
    if let Some(Command::Health { live }) = command {
        // A refused reload leaves the daemon healthy, so problems of the file are ignored here.
        let config = sources.load_lenient();
        return finish(health(&config, if *live { HealthCheck::Live } else { HealthCheck::Ready }));
    }
    if let Some(Command::Report { peer }) = command {
        return finish(queried(peer, || sources.load_lenient()).and_then(|target| report(&target)));
    }
    if let Some(Command::Explain { key, peer }) = command {
        let target = queried(peer, || sources.load_lenient());
        return finish(target.and_then(|target| explain(&target, key)));
    }
    let serves = command.is_none() && !sources.flags.print_config;
    let config = match sources.load() {
        Ok(config) => config,
        Err(problems) => {
            let format = sources.load_lenient().telemetry.log_format;
            return report_problems(&problems, if serves { format } else { LogFormat::Text });
        }
    };
    match command {
        Some(Command::Check) => check(&config, &sources),
        _ if sources.flags.print_config => {
            finish(config.to_toml().map_err(Into::into).and_then(|text| print_text(&text)))
        }
        _ => serve(config, sources),
    }
}

fn check(config: &Config, sources: &Sources) -> ExitCode {
    if let Err(problems) = config.check_exposure() {
        return report_problems(&problems, LogFormat::Text);
    }
    let variables = sources.stray_variables().into_iter().map(|problem| problem.to_string());
    let targets = config.unknown_log_targets().into_iter().map(|target| {
        format!(
            "telemetry.log_filter: {target:?} is a target of no log line, so it changes nothing"
        )
    });
    for warning in variables.chain(targets).chain(config.overlapping_rules()) {
        write_error(&format!("warning: {warning}"));
    }
    finish(print_text("The configuration is right.\n"))
}

fn finish(ended: anyhow::Result<ExitCode>) -> ExitCode {
    ended.unwrap_or_else(|error| print_error(&format!("{error:#}"), exit_code(&error)))
}

fn report_problems(problems: &Problems, format: LogFormat) -> ExitCode {
    let code = if problems.has_flag_error() { USAGE } else { CONFIG };
    report_before_the_log(&problems.to_string(), code, format)
}

/// Reports the reason for a failed start for which no log has been started.
fn report_before_the_log(text: &str, code: u8, format: LogFormat) -> ExitCode {
    let settings = telemetry::Settings { log_format: format, ..telemetry::Settings::default() };
    match format {
        LogFormat::Json => match Telemetry::start(&settings) {
            Ok(telemetry) => log_error(text, code, &telemetry),
            Err(_) => print_error(text, code),
        },
        LogFormat::Text => print_error(text, code),
    }
}

/// Logs each line of `text` as an error, whatever the filter. Otherwise `telemetry.log_filter =
/// "off"` would hide the reason for a failed start.
fn log_error(text: &str, code: u8, telemetry: &Telemetry) -> ExitCode {
    telemetry.set_filter(&LogFilter::default());
    text.lines().for_each(|line| tracing::error!("{line}"));
    telemetry.flush();
    ExitCode::from(code)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let wrong_file = matches!(
        error.downcast_ref(),
        Some(StartError::Prepare(_) | StartError::File(_) | StartError::Files(_))
    );
    let unprotected =
        matches!(error.downcast_ref(), Some(StartError::Bind(BindError::UnprotectedListener(_))));
    let wrong_collector = matches!(
        error.downcast_ref(),
        Some(telemetry::StartError::Traces(reason)) if reason.is_configuration()
    );
    if wrong_file || unprotected || wrong_collector { CONFIG } else { FAILED }
}

fn print_error(text: &str, code: u8) -> ExitCode {
    write_error(text);
    ExitCode::from(code)
}

fn write_error(text: &str) {
    let mut stderr = std::io::stderr().lock();
    text.lines().for_each(|line| _ = writeln!(stderr, "redis-proxy: {line}"));
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

/// Prints the reads by rule of a running proxy.
fn report(target: &Target) -> anyhow::Result<ExitCode> {
    let response = query(target, "/report")?;
    match report::render(&response.body) {
        Some(table) if response.status == 200 => print_text(&table),
        _ => bail!("no report from {}, but status {}", target.shown(), response.status),
    }
}

/// Prints the state of a key in a running proxy.
fn explain(target: &Target, key: &str) -> anyhow::Result<ExitCode> {
    let response = query(target, &format!("/cache/{}", path_escape(key.as_bytes())))?;
    let shown = target.shown();
    match explain::render(&response.body) {
        Some(text) if response.status == 200 => print_text(&text),
        _ if response.status == 401 => {
            bail!("{shown} requires a token with the right purge: --token-file")
        }
        _ => bail!("no explanation from {shown}, but status {}", response.status),
    }
}

fn query(target: &Target, path: &str) -> anyhow::Result<Response> {
    let response = target.get(path, client::TIMEOUT);
    response.with_context(|| format!("no answer from {}", target.shown()))
}

fn health(config: &Config, health_check: HealthCheck) -> anyhow::Result<ExitCode> {
    // Any certificate is accepted: the daemon is on this machine, and the request has no secret.
    let target = operators_listener(config, Trust::Any);
    let (well, answer) = health::check(&target, health_check)
        .with_context(|| format!("no answer from {}", target.shown()))?;
    print_text(&format!("{answer}\n"))?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Returns the listener that serves the operator's routes by this configuration. `trust` verifies
/// its certificate.
fn operators_listener(config: &Config, trust: Trust) -> Target {
    if config.admin.listen.is_off() {
        let has_tls = !config.http.tls_cert_file.as_os_str().is_empty();
        Target::of_listener(&config.http.listen, has_tls.then_some(trust))
    } else {
        Target::of_listener(&config.admin.listen, None)
    }
}

/// Returns the proxy that a command queries: the one at `--admin`, or else that of the
/// configuration.
fn queried(peer: &Peer, config: impl FnOnce() -> Config) -> anyhow::Result<Target> {
    if let Some(admin) = &peer.admin {
        let trust = Trust::Authorities(peer.ca_file.clone());
        let target = Target::parse(admin, trust).map_err(|problem| anyhow!("--admin: {problem}"));
        return with_token(target?, peer.token_file.as_deref());
    }
    let config = config();
    let trust = Trust::Only(config.http.tls_cert_file.clone());
    let target = operators_listener(&config, trust);
    let tokens = Some(&*config.http.tokens_file)
        .filter(|file| config.admin.listen.is_off() && !file.as_os_str().is_empty());
    with_token(target, peer.token_file.as_deref().or(tokens))
}

/// Returns the same proxy, to which the first token of a file is sent.
fn with_token(target: Target, file: Option<&Path>) -> anyhow::Result<Target> {
    let Some(file) = file else { return Ok(target) };
    Ok(target.with_token_file(file)?)
}

/// Runs `stat` and `top` for this proxy.
#[cfg(not(feature = "console"))]
fn show(
    _: Option<&Command>,
    target: anyhow::Result<Target>,
    _: Duration,
) -> anyhow::Result<ExitCode> {
    let shown = target?.shown().clone();
    bail!("built without the feature console; /status and /status.json of {shown} show the same")
}

/// Runs `stat` and `top` for this proxy.
#[cfg(feature = "console")]
fn show(
    command: Option<&Command>,
    target: anyhow::Result<Target>,
    interval: Duration,
) -> anyhow::Result<ExitCode> {
    let mut source = Source::new(target?, interval);
    let mut out = io::stdout().lock();
    let shown = match command {
        Some(Command::Stat { count, .. }) => {
            let lines = count.map_or(console::Count::Endless, console::Count::Lines);
            console::stat(&mut source, lines, &mut out)
        }
        Some(Command::Top { json: true, once, .. }) => {
            console::print_json(&mut source, *once, &mut out)
        }
        Some(Command::Top { once: true, .. }) => console::once(&mut source, &mut out),
        _ if !io::IsTerminal::is_terminal(&io::stdout()) => {
            bail!("standard output is no terminal; expected --once or --json")
        }
        _ => {
            drop(out);
            let has_colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            console::top(source, has_colours)
        }
    };
    match shown {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error.into()),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

fn serve(config: Config, sources: Sources) -> ExitCode {
    let format = config.telemetry.log_format;
    let telemetry = match Telemetry::start(&config.telemetry) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            let error: anyhow::Error = error.into();
            return report_before_the_log(&format!("{error:#}"), exit_code(&error), format);
        }
    };
    let ended = run(config, sources, &telemetry);
    telemetry.flush();
    match (ended, format) {
        (Ok(code), _) => code,
        (Err(error), LogFormat::Json) => {
            log_error(&format!("{error:#}"), exit_code(&error), &telemetry)
        }
        (Err(error), LogFormat::Text) => print_error(&format!("{error:#}"), exit_code(&error)),
    }
}

fn run(config: Config, sources: Sources, telemetry: &Telemetry) -> anyhow::Result<ExitCode> {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config = sources.flags.config.as_ref().map(|file| field::display(file.display())),
        pid = std::process::id(),
        "starting redis-proxy"
    );
    for problem in sources.stray_variables() {
        tracing::warn!("{problem}");
    }
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
