// Puts bodies into etcd as fast as it takes them: peer of our ingest.
//
//	etcd ENDPOINT FILE CLIENTS SECONDS HOSTS BATCH
//
// FILE holds the bodies, each after its length in four bytes. Each client has one put under way,
// or one transaction of BATCH puts.
// Prints one line of JSON.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"math/rand"
	"os"
	"sort"
	"strconv"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Clients that share a connection; one connection for all would hold etcd back.
const perConnection = 8

func main() {
	if len(os.Args) != 7 {
		log.Fatal("usage: etcd ENDPOINT FILE CLIENTS SECONDS HOSTS BATCH")
	}
	bodies := read(os.Args[2])
	clients, seconds, hosts, batch := number(os.Args[3]), number(os.Args[4]), number(os.Args[5]), number(os.Args[6])

	var connections []*clientv3.Client
	for i := 0; i < (clients+perConnection-1)/perConnection; i++ {
		connection, err := clientv3.New(clientv3.Config{Endpoints: []string{os.Args[1]}, DialTimeout: 10 * time.Second})
		if err != nil {
			log.Fatal(err)
		}
		defer connection.Close()
		if _, err := connection.Put(context.Background(), "/warm", "up"); err != nil {
			log.Fatal(err)
		}
		connections = append(connections, connection)
	}

	begin := time.Now()
	deadline := begin.Add(time.Duration(seconds) * time.Second)
	times := make([][]time.Duration, clients)
	var group sync.WaitGroup
	for i := 0; i < clients; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			dice := rand.New(rand.NewSource(int64(i)))
			for time.Now().Before(deadline) {
				var puts []clientv3.Op
				for range batch {
					// A key twice in a transaction is refused.
					key := fmt.Sprintf("/hosts/host-%05d/%d", dice.Intn(hosts), len(puts))
					puts = append(puts, clientv3.OpPut(key, bodies[dice.Intn(len(bodies))]))
				}
				asked := time.Now()
				if err := put(connections[i/perConnection], puts); err != nil {
					log.Fatal(err)
				}
				times[i] = append(times[i], time.Since(asked))
			}
		}(i)
	}
	group.Wait()
	elapsed := time.Since(begin).Seconds()

	var all []float64
	for _, some := range times {
		for _, one := range some {
			all = append(all, one.Seconds()*1e3)
		}
	}
	sort.Float64s(all)
	at := func(percent int) float64 { return all[min(len(all)-1, len(all)*percent/100)] }
	line, err := json.Marshal(map[string]any{
		"count": len(all) * batch, "seconds": elapsed, "per_second": float64(len(all)*batch) / elapsed,
		"p50_ms": at(50), "p99_ms": at(99),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(line))
}

func put(connection *clientv3.Client, puts []clientv3.Op) error {
	if len(puts) == 1 {
		_, err := connection.Do(context.Background(), puts[0])
		return err
	}
	_, err := connection.Txn(context.Background()).Then(puts...).Commit()
	return err
}

func read(path string) []string {
	bytes, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	var bodies []string
	for len(bytes) >= 4 {
		length := binary.LittleEndian.Uint32(bytes)
		bodies = append(bodies, string(bytes[4:4+length]))
		bytes = bytes[4+length:]
	}
	return bodies
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	if err != nil {
		log.Fatal(err)
	}
	return value
}
