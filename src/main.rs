//! The entry point: parses the flags, loads the configuration, then serves or reports the problems.
//!
//! Exit codes: 0 success, 1 failure, 64 wrong command line, 78 wrong configuration (sysexits.h).

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use redis_proxy::cli::{self, Cli, Command, Flags};
use redis_proxy::config::{self, Config, Problems, Sources};
use redis_proxy::daemon::health::{self, HealthCheck};
use redis_proxy::daemon::query::{self, Query, Transport};
use redis_proxy::daemon::{Daemon, ExitReason, StartError};
use redis_proxy::daemon::{explain, report};
use redis_proxy::server::BindError;
use redis_proxy::settings::Listen;
use redis_proxy::telemetry::hot_keys::path_escape;
use redis_proxy::telemetry::{self, LogFilter, LogFormat, Telemetry, TracesError};
use tracing::field;

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
    options.open(file)?.write_all(text.as_bytes())
}

/// Runs the commands that need the configuration.
fn configured(command: Option<&Command>, flags: Flags) -> ExitCode {
    let sources = Sources { flags, environment: config::environment() };
    if let Some(Command::Health { live }) = command {
        // A refused reload leaves the daemon healthy, so problems of the file are ignored here.
        let config = sources.load_lenient();
        return finish(health(&config, if *live { HealthCheck::Live } else { HealthCheck::Ready }));
    }
    if let Some(Command::Report { admin }) = command {
        let (listen, transport) = match operators(&sources.load_lenient(), admin.as_deref()) {
            Ok(found) => found,
            Err(text) => return print_error(&text, USAGE),
        };
        return finish(report(&listen, transport));
    }
    if let Some(Command::Explain { key, admin, token_file }) = command {
        let (listen, transport) = match operators(&sources.load_lenient(), admin.as_deref()) {
            Ok(found) => found,
            Err(text) => return print_error(&text, USAGE),
        };
        return finish(explain(&listen, transport, key, token_file.as_deref()));
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
        Some(telemetry::StartError::Traces(TracesError::Exporter(_)))
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

/// Returns the listener with the operator's routes: the given one, or that of the configuration.
fn operators(config: &Config, admin: Option<&str>) -> Result<(Listen, Transport), String> {
    if let Some(admin) = admin {
        let listen =
            Listen::try_from(admin.to_owned()).map_err(|text| format!("--admin: {text}"))?;
        return Ok((listen, Transport::Tcp));
    }
    let is_apart = !config.admin.listen.is_off();
    let listen = if is_apart { &config.admin.listen } else { &config.http.listen };
    let is_in_clear = is_apart || config.http.tls_cert_file.as_os_str().is_empty();
    Ok((listen.clone(), if is_in_clear { Transport::Tcp } else { Transport::Tls }))
}

fn report(listen: &Listen, transport: Transport) -> anyhow::Result<ExitCode> {
    let query = Query { path: "/report", token: None };
    let (status, body) =
        query::get(listen, transport, query).with_context(|| format!("no answer from {listen}"))?;
    match report::render(&body) {
        Some(table) if status == 200 => print_text(&table),
        _ => anyhow::bail!("no report from {listen}, but status {status}"),
    }
}

fn explain(
    listen: &Listen,
    transport: Transport,
    key: &str,
    token_file: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    let token = token_file.map(|file| {
        let text = fs::read_to_string(file);
        text.with_context(|| format!("cannot read {}", file.display()))
    });
    let token = token.transpose()?;
    // Rights may follow the token in its line.
    let token = token.as_deref().and_then(|text| text.split_whitespace().next());
    let path = format!("/cache/{}", path_escape(key.as_bytes()));
    let (status, body) = query::get(listen, transport, Query { path: &path, token })
        .with_context(|| format!("no answer from {listen}"))?;
    match explain::render(&body) {
        Some(text) if status == 200 => print_text(&text),
        _ if status == 401 => {
            anyhow::bail!("{listen} requires a token with the right purge: --token-file")
        }
        _ => anyhow::bail!("no explanation from {listen}, but status {status}"),
    }
}

fn health(config: &Config, health_check: HealthCheck) -> anyhow::Result<ExitCode> {
    let (listen, transport) = operators(config, None).map_err(anyhow::Error::msg)?;
    let (well, answer) = health::check(&listen, transport, health_check)
        .with_context(|| format!("no answer from {listen}"))?;
    print_text(&format!("{answer}\n"))?;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
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
