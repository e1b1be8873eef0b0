package torture

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// The ways that bytes go through a proxy.
const (
	upstream   = "upstream"
	downstream = "downstream"
)

// proxy is the network between a process and the server.
type proxy struct{ *toxiproxy.Proxy }

func newProxy(name, server string) (*proxy, error) {
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	p := &proxy{toxiproxy.NewProxy(api, name, "127.0.0.1:0", server)}
	err := p.Start()
	return p, err
}

// reset ends each connection on which something comes in that direction before the
// returned function is called; what came is lost. Those that begin meanwhile end
// with RST.
func (p *proxy) reset(ctx context.Context, stream string) (end func(), err error) {
	return p.toxic(ctx, `{"name":"reset","type":"reset_peer","stream":%q,"attributes":{"timeout":0}}`, stream)
}

// delay has each packet of the server come later.
func (p *proxy) delay(ctx context.Context, by time.Duration) (end func(), err error) {
	return p.toxic(ctx, `{"name":"delay","type":"latency","stream":%q,"attributes":{"latency":%d}}`, downstream, by.Milliseconds())
}

func (p *proxy) toxic(ctx context.Context, format string, args ...any) (end func(), err error) {
	t, err := p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(format, args...)))
	if err != nil {
		return nil, err
	}
	return func() { _ = p.Toxics.RemoveToxic(context.WithoutCancel(ctx), t.Name) }, nil
}
