// simulator is an ESXi host or a vCenter to try against, and the hand that changes it.
//
//	simulator serve -listen ADDRESS [-esx] [-vms N] [-hosts N] [-certificate FILE -key FILE]
//	simulator do URL rename VM NAME | on VM | off VM | delete VM | create VM UUID | uuid VM UUID
//	simulator do URL guest VM HOSTNAME ADDRESS | template VM | list | expire
//
// It listens on loopback alone; user and password are "user" and "pass".
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

func main() {
	if len(os.Args) < 2 {
		fail(errors.New("say serve or do; see main.go"))
	}
	var err error
	switch os.Args[1] {
	case "serve":
		err = serve(os.Args[2:])
	case "do":
		err = do(os.Args[2:])
	default:
		err = fmt.Errorf("%q is neither serve nor do", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "simulator:", err)
	os.Exit(1)
}

func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:0", "address on loopback")
	esx := flags.Bool("esx", false, "be an ESXi host, not a vCenter")
	vms := flags.Int("vms", 3, "virtual machines of each host, or of a vCenter")
	hosts := flags.Int("hosts", 2, "hosts of a vCenter")
	certificate := flags.String("certificate", "", "certificate, PEM")
	key := flags.String("key", "", "its key, PEM")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(*listen)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%s is not on loopback", *listen)
	}
	model := simulator.VPX()
	if *esx {
		model = simulator.ESX()
	} else {
		model.Host, model.ClusterHost = 0, *hosts
	}
	model.Machine = *vms
	if err := model.Create(); err != nil {
		return err
	}
	model.Service.Listen = &url.URL{Host: *listen, User: url.UserPassword("user", "pass")}
	model.Service.TLS = new(tls.Config)
	if *certificate != "" {
		pair, err := tls.LoadX509KeyPair(*certificate, *key)
		if err != nil {
			return err
		}
		model.Service.TLS.Certificates = []tls.Certificate{pair}
	}
	server := model.Service.NewServer()
	defer server.Close()
	fmt.Println(server.URL.String())
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	<-stop
	return nil
}

func do(words []string) error {
	if len(words) < 2 {
		return errors.New("say where, and what to do")
	}
	address, err := url.Parse(words[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client, err := govmomi.NewClient(ctx, address, true)
	if err != nil {
		return err
	}
	defer client.Logout(context.Background())
	verb, words := words[1], words[2:]
	if verb == "list" {
		return list(ctx, client)
	}
	if verb == "expire" {
		return expire(ctx, client)
	}
	if verb == "create" {
		return create(ctx, client, words)
	}
	if len(words) == 0 {
		return errors.New("say which VM")
	}
	vm, err := named(ctx, client, words[0])
	if err != nil {
		return err
	}
	return change(ctx, vm, verb, words[1:])
}

// named finds a VM by the name it has at this moment.
func named(ctx context.Context, client *govmomi.Client, name string) (*object.VirtualMachine, error) {
	all, err := machines(ctx, client)
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		if one.Name == name {
			return object.NewVirtualMachine(client.Client, one.Reference()), nil
		}
	}
	return nil, fmt.Errorf("no VM is called %q", name)
}

func machines(ctx context.Context, client *govmomi.Client) ([]mo.VirtualMachine, error) {
	kinds := []string{"VirtualMachine"}
	root := client.ServiceContent.RootFolder
	seen, err := view.NewManager(client.Client).CreateContainerView(ctx, root, kinds, true)
	if err != nil {
		return nil, err
	}
	defer seen.Destroy(ctx)
	var all []mo.VirtualMachine
	err = seen.Retrieve(ctx, kinds, []string{"name", "config.uuid", "runtime.powerState"}, &all)
	return all, err
}

func list(ctx context.Context, client *govmomi.Client) error {
	all, err := machines(ctx, client)
	if err != nil {
		return err
	}
	for _, one := range all {
		fmt.Println(one.Config.Uuid, one.Runtime.PowerState, one.Name)
	}
	return nil
}

// expire ends all sessions but its own.
func expire(ctx context.Context, client *govmomi.Client) error {
	var manager mo.SessionManager
	reference := *client.ServiceContent.SessionManager
	seen := property.DefaultCollector(client.Client)
	if err := seen.RetrieveOne(ctx, reference, []string{"sessionList"}, &manager); err != nil {
		return err
	}
	own, err := client.SessionManager.UserSession(ctx)
	if err != nil {
		return err
	}
	for _, one := range manager.SessionList {
		if one.Key == own.Key {
			continue
		}
		if err := client.SessionManager.TerminateSession(ctx, []string{one.Key}); err != nil {
			return err
		}
	}
	return nil
}

func create(ctx context.Context, client *govmomi.Client, words []string) error {
	if len(words) != 2 {
		return errors.New("say its name and UUID")
	}
	finder := find.NewFinder(client.Client)
	center, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return err
	}
	finder.SetDatacenter(center)
	folders, err := center.Folders(ctx)
	if err != nil {
		return err
	}
	pools, err := finder.ResourcePoolList(ctx, "*")
	if err != nil {
		return err
	}
	store, err := finder.DefaultDatastore(ctx)
	if err != nil {
		return err
	}
	specification := types.VirtualMachineConfigSpec{
		Name:    words[0],
		Uuid:    words[1],
		GuestId: string(types.VirtualMachineGuestOsIdentifierOtherGuest),
		Files:   &types.VirtualMachineFileInfo{VmPathName: "[" + store.Name() + "]"},
	}
	task, err := folders.VmFolder.CreateVM(ctx, specification, pools[0], nil)
	return done(ctx, task, err)
}

func change(ctx context.Context, vm *object.VirtualMachine, verb string, words []string) error {
	wants := map[string]int{"rename": 1, "on": 0, "off": 0, "delete": 0, "uuid": 1, "guest": 2, "template": 0}
	if count, known := wants[verb]; !known || len(words) != count {
		return fmt.Errorf("%s is not done with %d words", verb, len(words))
	}
	switch verb {
	case "rename":
		task, err := vm.Rename(ctx, words[0])
		return done(ctx, task, err)
	case "on":
		task, err := vm.PowerOn(ctx)
		return done(ctx, task, err)
	case "off":
		task, err := vm.PowerOff(ctx)
		return done(ctx, task, err)
	case "delete":
		// One that runs can't be; that it is off already is no fault.
		if task, err := vm.PowerOff(ctx); err == nil {
			_ = task.Wait(ctx)
		}
		task, err := vm.Destroy(ctx)
		return done(ctx, task, err)
	case "template":
		return vm.MarkAsTemplate(ctx)
	case "uuid":
		task, err := vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{Uuid: words[0]})
		return done(ctx, task, err)
	}
	// The simulator takes what a guest tells of itself by such keys.
	specification := types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{
		&types.OptionValue{Key: "SET.guest.hostName", Value: words[0]},
		&types.OptionValue{Key: "SET.guest.ipAddress", Value: words[1]},
	}}
	task, err := vm.Reconfigure(ctx, specification)
	return done(ctx, task, err)
}

func done(ctx context.Context, task *object.Task, err error) error {
	if err != nil {
		return err
	}
	return task.Wait(ctx)
}
