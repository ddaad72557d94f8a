//! The manual pages: one for the program and one for each command. The options are those of the
//! command line itself; the sections that clap does not know are texts here.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use clap::CommandFactory as _;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::Cli;

/// A heading, and its entries of a term and a text.
type Section = (&'static str, &'static [(&'static str, &'static str)]);

const EXIT_STATUS: Section = (
    "EXIT STATUS",
    &[
        ("0", "Success."),
        ("1", "Failure, for example because a port is in use, or a negative reply of health."),
        ("64", "Wrong command line."),
        ("78", "Wrong configuration."),
    ],
);

const CONFIG_VARIABLE: (&str, &str) =
    ("REDIS_PROXY_CONFIG", "The configuration file, as --config.");
const KEY_VARIABLE: (&str, &str) =
    ("REDIS_PROXY_SECTION__KEY", "A key of the configuration, as redis-proxy(1) describes it.");
/// The environment of the commands that read the configuration.
const ENVIRONMENT: Section = ("ENVIRONMENT", &[CONFIG_VARIABLE, KEY_VARIABLE]);

const FILES: Section = (
    "FILES",
    &[(
        "/etc/redis-proxy/redis-proxy.toml",
        "The configuration of the packaged service. It is read here if --config or the environment \
        names it.",
    )],
);

/// The last section of each command's page.
const SEE_ALSO: Section =
    ("SEE ALSO", &[("redis-proxy(1)", "The program, its configuration and its signals.")]);

/// The sections of the program's page.
const PROGRAM: &[Section] = &[
    EXIT_STATUS,
    (
        "ENVIRONMENT",
        &[
            ("REDIS_PROXY_CONFIG", "The configuration file, as --config."),
            (
                "REDIS_PROXY_SECTION__KEY",
                "A key of the configuration, with two underscores behind the section: \
                REDIS_PROXY_CACHE__TTL=30s.",
            ),
            (
                "OTEL_*",
                "The standard variables of OpenTelemetry win over the keys telemetry.traces*.",
            ),
            (
                "CREDENTIALS_DIRECTORY",
                "Set by systemd. Its file redis-password is the password for Redis if no other is \
                set.",
            ),
            (
                "LISTEN_FDS, LISTEN_FDNAMES, NOTIFY_SOCKET, WATCHDOG_USEC",
                "Set by systemd: its sockets, its notifications and its watchdog.",
            ),
        ],
    ),
    (
        "FILES",
        &[
            (
                "/etc/redis-proxy/redis-proxy.toml",
                "The configuration of the packaged service. It lists every key with its default.",
            ),
            ("/etc/default/redis-proxy", "The environment of the packaged service."),
            ("/usr/share/redis-proxy/redis-proxy.schema.json", "The schema of the configuration."),
        ],
    ),
    (
        "SIGNALS",
        &[
            (
                "SIGHUP",
                "Reloads the configuration, and the files with certificates, tokens and passwords. \
                A configuration with a problem is refused as a whole.",
            ),
            (
                "SIGTERM, SIGINT",
                "Stops after the requests in flight, within daemon.drain_timeout. A second one \
                stops at once.",
            ),
        ],
    ),
    (
        "EXAMPLES",
        &[
            (
                "redis-proxy --redis_host db --ttl 30s",
                "Serves http://127.0.0.1:8080/keys/KEY from the Redis on the host db.",
            ),
            (
                "redis-proxy --resp_listen 127.0.0.1:6380 --set cache.capacity=100000",
                "Serves Redis clients, too, and caches up to 100000 keys.",
            ),
            (
                "redis-proxy init --redis_host db && redis-proxy --config redis-proxy.toml",
                "Writes a configuration file, and serves with it.",
            ),
        ],
    ),
];

/// The sections of the pages of commands.
const COMMANDS: &[(&str, &[Section])] = &[
    (
        "check",
        &[
            ENVIRONMENT,
            FILES,
            EXIT_STATUS,
            (
                "EXAMPLES",
                &[(
                    "redis-proxy check --config redis-proxy.toml",
                    "Reports every problem of the file, the environment and the flags.",
                )],
            ),
        ],
    ),
    (
        "explain",
        &[
            ENVIRONMENT,
            FILES,
            EXIT_STATUS,
            (
                "EXAMPLES",
                &[(
                    "redis-proxy explain session:1 --admin 127.0.0.1:9090",
                    "Prints whether that proxy answers reads of this key from memory, and why.",
                )],
            ),
        ],
    ),
    (
        "health",
        &[
            ENVIRONMENT,
            FILES,
            EXIT_STATUS,
            (
                "EXAMPLES",
                &[(
                    "redis-proxy health --live --config redis-proxy.toml",
                    "Asks the proxy that runs with this configuration whether it serves.",
                )],
            ),
        ],
    ),
    (
        "stat",
        &[
            ENVIRONMENT,
            FILES,
            EXIT_STATUS,
            (
                "EXAMPLES",
                &[
                    ("redis-proxy stat", "Prints a line a second about the proxy of this machine."),
                    (
                        "redis-proxy stat --admin 10.0.0.5:9090 -i 10s -n 6",
                        "Prints six lines in a minute about another proxy.",
                    ),
                ],
            ),
        ],
    ),
    (
        "top",
        &[
            (
                "ENVIRONMENT",
                &[
                    CONFIG_VARIABLE,
                    KEY_VARIABLE,
                    ("NO_COLOR", "If it is set and not empty, there are no colours."),
                ],
            ),
            FILES,
            EXIT_STATUS,
            (
                "SIGNALS",
                &[(
                    "SIGINT, SIGTERM, SIGHUP",
                    "End it within a second. The terminal is as it was before.",
                )],
            ),
            (
                "EXAMPLES",
                &[
                    (
                        "redis-proxy top --admin https://proxy.example:8443 --token-file token",
                        "Watches a proxy whose HTTP listener has TLS and tokens.",
                    ),
                    (
                        "redis-proxy top --once --json | jq .rates.hit_ratio",
                        "Prints the hit ratio of one second.",
                    ),
                ],
            ),
        ],
    ),
    (
        "init",
        &[
            ENVIRONMENT,
            (
                "FILES",
                &[(
                    "redis-proxy.toml",
                    "The file that is written by default, for its owner alone.",
                )],
            ),
            EXIT_STATUS,
            (
                "EXAMPLES",
                &[(
                    "redis-proxy init --set redis.password_file=/etc/redis-proxy/password -",
                    "Prints a file in which one key is set and every other is a comment.",
                )],
            ),
        ],
    ),
    (
        "report",
        &[
            ENVIRONMENT,
            FILES,
            EXIT_STATUS,
            (
                "EXAMPLES",
                &[(
                    "redis-proxy report --admin 127.0.0.1:9090",
                    "Prints how many reads of each rule Redis was spared, or would be.",
                )],
            ),
        ],
    ),
    (
        "schema",
        &[
            EXIT_STATUS,
            (
                "EXAMPLES",
                &[(
                    "redis-proxy schema > redis-proxy.schema.json",
                    "Editors check redis-proxy.toml with it if its first line is \
                #:schema ./redis-proxy.schema.json",
                )],
            ),
        ],
    ),
    (
        "man",
        &[
            EXIT_STATUS,
            (
                "EXAMPLES",
                &[
                    ("redis-proxy man health | man -l -", "Shows a page."),
                    ("redis-proxy man --directory /usr/share/man/man1", "Installs all pages."),
                ],
            ),
        ],
    ),
    (
        "completions",
        &[
            EXIT_STATUS,
            (
                "EXAMPLES",
                &[("redis-proxy completions bash", "Prints a script for /etc/bash_completion.d.")],
            ),
        ],
    ),
];

/// Writes the page of a command to `out`, or without a name the page of the program. Returns
/// whether there is such a command.
///
/// # Errors
/// [`io::Error`] of `out`.
pub fn write_manual(name: Option<&str>, out: &mut dyn Write) -> io::Result<bool> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build(); // gives the commands their full names
    let Some(name) = name else {
        write_page(program, PROGRAM, out)?;
        return Ok(true);
    };
    let Some(command) = program.get_subcommands().find(|command| command.get_name() == name) else {
        return Ok(false);
    };
    let sections = COMMANDS.iter().find(|(of, _)| *of == name).map_or(&[][..], |(_, own)| *own);
    write_page(command.clone(), &[sections, &[SEE_ALSO]].concat(), out)?;
    Ok(true)
}

/// Writes all pages into a directory, as `redis-proxy.1`, `redis-proxy-check.1` and so on.
///
/// # Errors
/// [`io::Error`] of the file system.
pub fn write_manuals(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let commands: Vec<_> = COMMANDS.iter().map(|(name, _)| *name).collect();
    for name in [None].into_iter().chain(commands.into_iter().map(Some)) {
        let file = name.map_or("redis-proxy.1".to_owned(), |name| format!("redis-proxy-{name}.1"));
        let mut out = BufWriter::new(File::create(directory.join(file))?);
        write_manual(name, &mut out)?;
        out.flush()?;
    }
    Ok(())
}

fn write_page(command: clap::Command, sections: &[Section], out: &mut dyn Write) -> io::Result<()> {
    let (has_commands, has_version) = (command.has_subcommands(), command.get_version().is_some());
    let man = Man::new(command);
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if has_commands {
        man.render_subcommands_section(out)?;
    }
    for (heading, entries) in sections {
        let mut page = Roff::new();
        page.control("SH", [*heading]);
        for (term, text) in *entries {
            page.control("TP", []);
            page.text([bold(*term)]);
            page.text([roman(*text)]);
        }
        page.to_writer(out)?;
    }
    if has_version {
        man.render_version_section(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: Option<&str>) -> String {
        let mut page = Vec::new();
        assert!(write_manual(name, &mut page).unwrap(), "{name:?}");
        String::from_utf8(page).unwrap()
    }

    #[test]
    fn every_command_has_a_page() {
        let program = Cli::command();
        let mut names: Vec<_> = program.get_subcommands().map(clap::Command::get_name).collect();
        let mut pages: Vec<_> = COMMANDS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        pages.sort_unstable();
        assert_eq!(names, pages);
        for name in names {
            let page = page(Some(name));
            assert!(page.contains(&format!(".TH redis-proxy-{name} 1")), "{page}");
            let reads_configuration = !["schema", "man", "completions"].contains(&name);
            for (heading, is_there) in [
                ("ENVIRONMENT", reads_configuration),
                ("FILES", reads_configuration),
                ("\"EXIT STATUS\"", true),
                ("SIGNALS", name == "top"),
                ("EXAMPLES", true),
                ("\"SEE ALSO\"", true),
            ] {
                let has = page.contains(&format!("\n.SH {heading}\n"));
                assert_eq!(has, is_there, "{heading}: {page}");
            }
        }
    }

    #[test]
    fn page_of_the_program_has_every_section() {
        let page = page(None);
        for heading in ["\"EXIT STATUS\"", "ENVIRONMENT", "FILES", "SIGNALS", "EXAMPLES"] {
            assert!(page.contains(&format!("\n.SH {heading}\n")), "{heading}: {page}");
        }
    }

    #[test]
    fn pages_have_no_angle_brackets_around_addresses() {
        let names = COMMANDS.iter().map(|(name, _)| Some(*name));
        for name in names.chain([None]) {
            let page = page(name);
            assert!(!page.contains("<https:") && !page.contains("<unix:"), "{page}");
        }
    }

    #[test]
    fn unknown_command_has_no_page() {
        assert!(!write_manual(Some("nothing"), &mut Vec::new()).unwrap());
    }
}
