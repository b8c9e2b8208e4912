//! `sluice completion` and `sluice man`: what a shell and a person look up, made from the command line itself.

use anyhow::Result;
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
    #[arg(value_name = "COMMAND")]
    pub about: Option<String>,
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
            let found = command.find_subcommand(about).filter(|found| !found.is_hide_set());
            let found = found.ok_or_else(|| {
                let names: Vec<_> = names(&command).collect();
                anyhow::anyhow!("there is no command {about:?}; there are {}", names.join(", "))
            })?;
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
        assert!(page(Some("none")).unwrap_err().to_string().contains("there are agent, "));
    }
}
