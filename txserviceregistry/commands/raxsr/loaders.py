"""
Environment variables that decide which programs run, which code a program loads, or where our programs send an API key.

They have this effect in programs that know nothing of it, and before the first line of those programs. So a value of
the registry must not set them unless the person who runs the command has named them. An application's own variables
are not among them.
"""

from __future__ import annotations

#: The beginnings of the names of such variables.
PREFIXES = (
    # The system's loaders: Linux and BSD, macOS, IRIX and Tru64, AIX.
    *("LD_", "DYLD_", "_RLD", "LDR_"),
    # Interpreters: PYTHONPATH, PYTHONHOME, PYTHONSTARTUP; PERL5LIB, PERL5OPT; RUBYLIB, RUBYOPT; LUA_PATH, LUA_INIT …
    *("PYTHON", "PERL", "RUBY", "LUA_", "GUILE_", "JULIA_"),
    # .NET's profilers, which are libraries.
    *("CORECLR_", "COR_"),
    # Git runs GIT_SSH_COMMAND, GIT_PAGER, GIT_EXTERNAL_DIFF and what GIT_CONFIG_… says.
    "GIT_",
    *("NPM_CONFIG_", "PIP_"),
    # Our own programs, which would send the person's API key to the server of RAXSR_AUTH_URL.
    "RAXSR_",
)

#: The other names.
NAMES = frozenset(
    [
        # Where programs, and their configuration, are found.
        *("PATH", "HOME", "SHELL", "CDPATH", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME"),
        "XDG_DATA_DIRS",
        # Shells.
        *("ENV", "BASH_ENV", "BASHOPTS", "SHELLOPTS", "IFS", "PS4", "PROMPT_COMMAND", "GLOBIGNORE"),
        *("FPATH", "ZDOTDIR", "NULLCMD", "READNULLCMD"),
        # Programs that other programs start.
        *("EDITOR", "VISUAL", "PAGER", "MANPAGER", "BROWSER", "LESSOPEN", "LESSCLOSE", "SSH_ASKPASS"),
        *("SUDO_ASKPASS", "RSYNC_RSH", "CVS_RSH", "TAR_OPTIONS", "MAKEFLAGS", "MAKEFILES", "CC", "CXX"),
        *("RUSTC_WRAPPER", "GOFLAGS", "ZIPOPT", "VIMINIT", "EXINIT", "RIPGREP_CONFIG_PATH", "KUBECONFIG"),
        *("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"),
        # The C library, and other libraries that load modules.
        *("GCONV_PATH", "GETCONF_DIR", "GLIBC_TUNABLES", "LOCPATH", "NLSPATH", "LIBPATH", "SHLIB_PATH"),
        *("RES_OPTIONS", "HOSTALIASES", "LOCALDOMAIN", "OPENSSL_CONF", "OPENSSL_ENGINES"),
        *("OPENSSL_MODULES", "KRB5_CONFIG", "TERMCAP", "TERMINFO", "TERMINFO_DIRS", "GTK_MODULES"),
        *("GTK_PATH", "GIO_EXTRA_MODULES", "GIO_MODULE_DIR", "QT_PLUGIN_PATH"),
        *("QT_QPA_PLATFORM_PLUGIN_PATH", "GDK_PIXBUF_MODULE_FILE", "GST_PLUGIN_PATH", "LIBMYSQL_PLUGINS"),
        *("LIBMYSQL_PLUGIN_DIR", "ODBCINI", "ODBCSYSINI", "SASL_PATH", "GSS_MECH_CONFIG", "HDF5_PLUGIN_PATH"),
        *("GDAL_DRIVER_PATH", "CUDA_INJECTION64_PATH", "NVTX_INJECTION64_PATH"),
        # Java, Node.js, Bun, Ruby's gems, PHP, .NET, Mono, Erlang, Elixir, R, Tcl, and coverage.py.
        *("CLASSPATH", "JAVA_HOME", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"),
        *("IBM_JAVA_OPTIONS", "OPENJ9_JAVA_OPTIONS", "BUN_OPTIONS", "BUNDLE_PATH", "ELIXIR_ERL_OPTIONS"),
        *("R_LIBS_USER", "R_LIBS_SITE", "R_PROFILE_USER", "R_ENVIRON_USER", "TCL_LIBRARY", "COVERAGE_PROCESS_START"),
        *("NODE_OPTIONS", "NODE_PATH", "NODE_REPL_EXTERNAL_MODULE", "BUNDLE_GEMFILE", "GEM_HOME"),
        *("GEM_PATH", "PHPRC", "PHP_INI_SCAN_DIR", "DOTNET_STARTUP_HOOKS", "DOTNET_ADDITIONAL_DEPS"),
        *("DOTNET_SHARED_STORE", "DOTNET_ROOT", "MONO_PATH", "ERL_LIBS", "ERL_FLAGS", "ERL_AFLAGS"),
        *("ERL_ZFLAGS", "R_LIBS", "R_PROFILE", "R_ENVIRON", "R_HOME", "TCLLIBPATH"),
    ]
)


def decidesWhatRuns(name: str) -> bool:
    """Whether an environment variable of this *name* can make a program run other code, or ours give away a key."""
    return name in NAMES or name.startswith(PREFIXES)
