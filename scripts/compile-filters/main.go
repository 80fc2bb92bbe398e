// Compiles the seccomp filters that our sandboxes run under, as gVisor's releases have them compiled
// in. Without it each sentry spends some 13 ms of its start on compiling its own.
//
// It runs inside a copy of gVisor's module, which knows how to compile a filter but, as a module,
// comes with none that is compiled:
//
//	go run ./compile-filters
//
// writes one more file each into the packages of the sentry's and the gofer's filters. A
// configuration that is not among these is compiled at start, as without it.
package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	sentry "gvisor.dev/gvisor/runsc/boot/filter/config"
	gofer "gvisor.dev/gvisor/runsc/fsgofer/filter/config"
)

// What we start runsc with: one platform, the guest's own network stack, no devices of the host.
func usedBySentry(name string) bool {
	for _, part := range []string{`Platform="systrap"`, "HostNetwork=false", "NVProxy=false", "TPUProxy=false", "RDMAProxy=false"} {
		if !strings.Contains(name, part) {
			return false
		}
	}
	return true
}

// No access to sockets of the host.
func usedByGofer(name string) bool {
	return strings.Contains(name, "UDSOpenEnabled=false UDSCreateEnabled=false")
}

func write(folder string, programs []precompiledseccomp.Program, used func(string) bool) error {
	var entries strings.Builder
	for _, program := range programs {
		if used(program.Name) {
			fmt.Fprintf(&entries, "\t\t\t%q: %s,\n", program.Name, program.Expr("\t\t\t", "precompiledseccomp"))
		}
	}
	if entries.Len() == 0 {
		return fmt.Errorf("none of %d filters for %s is one that is used", len(programs), folder)
	}
	text := `package filter

import "gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"

func init() {
	registerPrecompiledProgramsOnce.Do(func() {
		precompiledPrograms = map[string]precompiledseccomp.Program{
` + entries.String() + `		}
	})
}
`
	return os.WriteFile(filepath.Join(folder, "compiled.go"), []byte(text), 0o644)
}

func main() {
	programs, err := sentry.PrecompiledPrograms()
	if err == nil {
		err = write("runsc/boot/filter", programs, usedBySentry)
	}
	if err != nil {
		log.Fatal(err)
	}
	programs, err = gofer.PrecompiledPrograms()
	if err == nil {
		err = write("runsc/fsgofer/filter", programs, usedByGofer)
	}
	if err != nil {
		log.Fatal(err)
	}
}
