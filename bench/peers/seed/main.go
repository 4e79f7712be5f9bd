// The agent of the seed: every ten seconds the whole machine through gopsutil, as JSON, sent
// whole. Peer of our agent.
//
//	seed URL
//
// The loop, the libraries and what is read of each process and of the hardware are the seed's.
// It left open how services are read ("Kod zbierania informacji o usługach..."); here that is
// one `systemctl show` for all, the cheapest way that needs no further library.
package main

import (
	"bytes"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/host"
	"github.com/shirou/gopsutil/v3/mem"
	"github.com/shirou/gopsutil/v3/process"
)

const interval = 10 * time.Second

func collectSystemState() map[string]interface{} {
	state := make(map[string]interface{})

	processes, _ := process.Processes()
	processInfo := []map[string]interface{}{}
	for _, p := range processes {
		name, _ := p.Name()
		cmdline, _ := p.Cmdline()
		cpu, _ := p.CPUPercent()
		processInfo = append(processInfo, map[string]interface{}{
			"pid":         p.Pid,
			"name":        name,
			"cmdline":     cmdline,
			"cpu_percent": cpu,
		})
	}
	state["processes"] = processInfo
	state["services"] = services()

	cpuInfo, _ := cpu.Info()
	memInfo, _ := mem.VirtualMemory()
	hostInfo, _ := host.Info()
	state["hardware"] = map[string]interface{}{
		"cpu":    cpuInfo,
		"memory": memInfo,
		"host":   hostInfo,
	}
	return state
}

func services() []map[string]string {
	output, err := exec.Command("systemctl", "show", "--type=service", "--all", "*.service",
		"--property=Id,LoadState,ActiveState,SubState,MainPID,UnitFileState").Output()
	if err != nil {
		log.Print(err)
	}
	var found []map[string]string
	for _, block := range strings.Split(strings.TrimSpace(string(output)), "\n\n") {
		service := map[string]string{}
		for _, line := range strings.Split(block, "\n") {
			if name, value, ok := strings.Cut(line, "="); ok {
				service[name] = value
			}
		}
		found = append(found, service)
	}
	return found
}

func sendToOrchestrator(url string, state []byte) {
	answer, err := http.Post(url, "application/json", bytes.NewReader(state))
	if err != nil {
		log.Print(err)
		return
	}
	answer.Body.Close()
}

func main() {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for range ticker.C {
		state := collectSystemState()
		stateJson, err := json.Marshal(state)
		if err != nil {
			log.Print(err)
			continue
		}
		sendToOrchestrator(os.Args[1], stateJson)
	}
}
