//! `sluice completion` and `sluice man`: what a shell and a person look up, made from the command line itself.

use anyhow::{Context, Result};
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::aot;
use clap_mangen::Man;

use crate::cli::{Cli, NAME};
use crate::errors;

/// Arguments of `sluice completion`.
#[derive(Debug, Args)]
pub struct CompletionArgs {
    /// Whose completions.
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// Arguments of `sluice man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command that the page is about, such as `agent` [default: all of them, in short].
    #[arg(value_name = "COMMAND", value_parser = command_name)]
    pub about: Option<String>,
}

/// The name of a command that has a page.
fn command_name(text: &str) -> Result<String, String> {
    let mut command = Cli::command();
    command.build();
    match page_of(&command, text) {
        Some(_) => Ok(text.to_owned()),
        None => {
            let names: Vec<_> = names(&command).collect();
            Err(format!("there is no such command; there are {}", names.join(", ")))
        }
    }
}

/// The command of a page.
fn page_of<'a>(command: &'a clap::Command, name: &str) -> Option<&'a clap::Command> {
    command.find_subcommand(name).filter(|found| !found.is_hide_set())
}

/// A shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash.
    Bash,
    /// Zsh.
    Zsh,
    /// fish.
    Fish,
}

/// Writes completions to standard output.
///
/// # Errors
/// It cannot be written to.
pub fn completion(args: &CompletionArgs) -> Result<()> {
    errors::print(&completions(args.shell))?;
    Ok(())
}

/// Writes a manual page to standard output, as roff.
///
/// # Errors
/// There is no such command, or standard output cannot be written to.
pub fn man(args: &ManArgs) -> Result<()> {
    errors::print(&page(args.about.as_deref())?)?;
    Ok(())
}

fn completions(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    let mut command = Cli::command();
    match shell {
        Shell::Bash => aot::generate(aot::Bash, &mut command, NAME, &mut text),
        Shell::Zsh => aot::generate(aot::Zsh, &mut command, NAME, &mut text),
        Shell::Fish => aot::generate(aot::Fish, &mut command, NAME, &mut text),
    }
    text
}

fn page(about: Option<&str>) -> Result<Vec<u8>> {
    let mut command = Cli::command();
    command.build();
    let page = match about {
        None => command,
        Some(about) => {
            let found = page_of(&command, about).with_context(|| format!("there is no command {about:?}"))?;
            found.clone().display_name(format!("{NAME}-{about}"))
        }
    };
    let mut text = Vec::new();
    Man::new(page).render(&mut text)?;
    Ok(text)
}

fn names(command: &clap::Command) -> impl Iterator<Item = &str> {
    command.get_subcommands().map(clap::Command::get_name).filter(|name| *name != "help")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn completions_and_pages_name_every_command_and_every_flag() {
        let mut command = Cli::command();
        command.build();
        let all = String::from_utf8(page(None).unwrap()).unwrap();
        for shell in Shell::value_variants() {
            let text = String::from_utf8(completions(*shell)).unwrap();
            for name in names(&command) {
                assert!(text.contains(name), "{shell:?}: {name}");
            }
            assert!(text.contains("service-metrics"), "{shell:?}");
        }
        for name in names(&command) {
            assert!(all.contains(&format!("{NAME}\\-{name}(1)")), "{name} is not in {all}");
            let page = String::from_utf8(page(Some(name)).unwrap()).unwrap();
            assert!(page.contains(&format!(".TH {NAME}-{name} 1")), "{page}");
            let flags = command.find_subcommand(name).unwrap().get_arguments();
            for flag in flags.filter(|flag| !flag.is_hide_set()).filter_map(|flag| flag.get_long()) {
                assert!(page.contains(&flag.replace('-', "\\-")), "{name}: --{flag} is not in {page}");
            }
        }
    }

    #[test]
    fn a_page_that_there_is_not_is_wrong_use_as_any_other() {
        let error = Cli::try_parse_from(["sluice", "man", "none"]).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("there are agent, "), "{error}");
        assert!(Cli::try_parse_from(["sluice", "man", "check"]).is_ok() && page(Some("none")).is_err());
    }
}
